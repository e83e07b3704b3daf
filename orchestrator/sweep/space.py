"""The space of a sweep: every point of the grid, and seeded draws for the dimensions with a distribution."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from orchestrator.config import Config, Dimension, SweepConfig, parse
from orchestrator.errors import UserError

# keys that a dimension cannot set: paths and names of the run, its verb, and the sweep itself
NOT_SETTINGS = ("sweep", "store", "out", "name", "run", "to", "checkpoint", "resume", "cluster")


def points(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """Yield the points for one seed, each with its value for every dimension; draws depend only on `search_seed`.

    Errors: `UserError` for a space without a dimension."""
    if not sweep.space:
        raise UserError(
            "sweep.space is empty: pick a sweep (sweep=keep_fraction, ...) or give "
            "sweep.space='{training.lr: {grid: [1e-4, 1e-3]}}'"
        )
    rng = np.random.default_rng(sweep.search_seed)
    grids = {name: one.grid for name, one in sweep.space.items() if one.grid is not None}
    drawn = {name: one for name, one in sweep.space.items() if one.grid is None}
    for values in product(*grids.values()):
        for _ in range(sweep.num_samples if drawn else 1):
            found = dict(zip(grids, values, strict=True)) | {name: _draw(one, rng) for name, one in drawn.items()}
            yield ordered(sweep, found)


def ordered(sweep: SweepConfig, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the point with its dimensions, mappings and lists in the order that the space gives them.

    The name of a trial's folder depends on that order, and a file or a searcher may give keys in another order."""
    return {name: _as_listed(one, point[name]) for name, one in sweep.space.items() if name in point}


def num_points(sweep: SweepConfig) -> int:
    """Return the number of points for one seed."""
    return sum(1 for _ in points(sweep))


def check_space(config: Config) -> None:
    """Check every listed value of each dimension, or both ends of its range, because Optuna suggests values only later.

    Errors: `UserError` for a space without a dimension, a key that does not exist, a value that the config refuses."""
    sweep = config.sweep
    first = next(points(sweep))
    for name, dimension in sweep.space.items():
        for value in getattr(dimension, dimension.way):
            configured(config, settings_of(sweep, {**first, name: value}))


def _as_listed(dimension: Dimension, value: Any) -> Any:
    if not isinstance(value, (dict, list)):
        return value
    return next((one for one in dimension.grid or dimension.choice or () if _json(one) == _json(value)), value)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _draw(dimension: Dimension, rng: np.random.Generator) -> Any:
    if dimension.choice is not None:
        return dimension.choice[rng.integers(len(dimension.choice))]
    if dimension.uniform is not None:
        return float(rng.uniform(*dimension.uniform))
    if dimension.log_uniform is not None:
        low, high = map(math.log, dimension.log_uniform)
        return math.exp(rng.uniform(low, high))
    assert dimension.int_uniform is not None
    low, high = dimension.int_uniform
    return int(rng.integers(low, high + 1))


def settings_of(sweep: SweepConfig, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration keys that a point sets, with their values."""
    return {key: value for name, value in point.items() for key in sweep.space[name].keys or (name,)}


def configured(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return the config with new values at dotted keys.

    Errors: `UserError` for a key that does not exist, that a trial cannot set or that has no effect, and for what
    `parse` refuses."""
    raw, changed = config.model_dump(), []
    for key, value in settings.items():
        *path, last = key.split(".")
        if not path or path[0] in NOT_SETTINGS:
            raise UserError(f"sweep.space: a trial cannot set {key}; expected a key such as training.lr")
        if path[0] == "selection" and len(path) > 1:
            path = ["selection", "settings", *path[1:]]
        node = raw
        for step in path:
            node = _below(node, step, key)
        _below(node, last, key)
        node[last] = list(value) if isinstance(value, tuple) else value
        changed.append((key, node))
    for key, node in changed:
        # keep_pairs has precedence, so all fractions would lead to the same models
        if key.endswith(".keep_fraction") and node["keep_pairs"] is not None:
            pairs = key.removesuffix("fraction") + "pairs"
            raise UserError(f"sweep.space: {key} has no effect while {pairs}={node['keep_pairs']}; set {pairs}=null")
    return parse(raw)


def _below(node: Any, name: str, key: str) -> Any:
    if not isinstance(node, dict) or name not in node:
        valid = f", expected one of: {', '.join(node)}" if isinstance(node, dict) else ""
        raise UserError(f"sweep.space: no such key {key} ({name!r}){valid}")
    return node[name]
