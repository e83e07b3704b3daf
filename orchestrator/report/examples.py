"""Example pairs of a run: the surest kept, those around the cut, the surest pruned; drawn from a handful of parts.

Equal scores are drawn in seeded order and a caption is shown once, so that a thousand copies of one do not fill a
group. Pairs without words are left to the counts: there is nothing of them to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.report.entry import Example
from orchestrator.report.pairs import example
from orchestrator.report.schema import ExampleGroup, Examples
from orchestrator.report.selected import SelectedStep
from orchestrator.selection.wfpp import read_scores

MAX_PARTS = 4
PAIRS_PER_GROUP = 10
CANDIDATES = 400
SEED = 0
# name, whether kept, +1 for rising scores, -1 for falling ones; without scores the order is a random draw
SCORED_GROUPS = (("highest", True, -1), ("above", True, 1), ("below", False, -1), ("lowest", False, 1))
DRAWN_GROUPS = (("kept", True, 0), ("pruned", False, 0))


@dataclass(frozen=True)
class _PartPairs:
    """A part's pairs that reached the step, in seeded order: rows, whether kept, scores (0 where there is none)."""

    index: int
    rows: NDArray[np.int64]
    kept: NDArray[np.bool_]
    scores: NDArray[np.float64]


def example_pairs(steps: list[SelectedStep]) -> Examples | None:
    """Pairs kept and pruned by the last step that pruned; null where none did."""
    pruned = [step for step in steps if step.outgoing != step.incoming]
    if not pruned:
        return None
    step = pruned[-1]
    catalog, sizes = step.catalog, step.catalog.rows_per_part
    draw = np.random.default_rng(SEED)
    filled = np.flatnonzero(sizes)
    chosen = np.sort(draw.choice(filled, min(MAX_PARTS, len(filled)), replace=False)).tolist()
    parts = [_part_pairs(step, index, sizes[index], draw) for index in chosen]
    wanted = SCORED_GROUPS if step.scored else DRAWN_GROUPS
    groups = [
        ExampleGroup(name=name, kept=kept, pairs=_group(catalog, parts, kept, direction, step.scored is not None))
        for name, kept, direction in wanted
    ]
    return Examples(step=step.name, parts_read=len(chosen), num_parts=len(sizes), groups=groups)


def _part_pairs(step: SelectedStep, index: int, num_rows: int, draw: np.random.Generator) -> _PartPairs:
    reached = KeepList(step.incoming).mask(index, num_rows)
    rows = np.flatnonzero(reached)
    kept = KeepList(step.outgoing).mask(index, num_rows)[reached]
    scores = read_scores(step.scored, index) if step.scored else np.zeros(len(rows))
    order = draw.permutation(len(rows))
    order = order[np.isfinite(scores[order])]
    return _PartPairs(index, rows[order], kept[order], scores[order])


def _group(catalog: Catalog, parts: list[_PartPairs], kept: bool, direction: int, is_scored: bool) -> list[Example]:
    found = [scored for part in parts for scored in _best(catalog, part, kept, direction, is_scored)]
    found.sort(key=lambda scored: direction * scored[0])
    return list(_distinct(pair for _, pair in found))[:PAIRS_PER_GROUP]


def _best(
    catalog: Catalog, part: _PartPairs, kept: bool, direction: int, is_scored: bool
) -> Iterator[tuple[float, Example]]:
    mine = np.flatnonzero(part.kept == kept)
    mine = mine[np.argsort(direction * part.scores[mine], kind="stable")][:CANDIDATES]
    labels = catalog.table(part.index, ("key", "caption")).take(part.rows[mine]).to_pylist()
    examples = [
        example(part.index, row, label, score if is_scored else None)
        for row, score, label in zip(part.rows[mine].tolist(), part.scores[mine].tolist(), labels, strict=True)
    ]
    for pair in list(_distinct(iter(examples)))[:PAIRS_PER_GROUP]:
        yield pair.score or 0.0, pair


def _distinct(examples: Iterator[Example]) -> Iterator[Example]:
    seen: set[str] = set()
    for pair in examples:
        if pair.caption not in seen:
            seen.add(pair.caption)
            yield pair
