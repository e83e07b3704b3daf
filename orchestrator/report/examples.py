"""Example pairs of a run: those the step preferred most and least, and those just inside and outside its threshold,
drawn from a few parts.

Equal scores are drawn in seeded order, and a caption is shown once: otherwise a thousand copies of a caption would fill
a group. Pairs without a finite score are not shown: the counts cover them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.report.pairs import example
from orchestrator.report.schema_pairs import Example, ExampleGroup, Examples
from orchestrator.report.selected import SelectedStep

MAX_PARTS = 4
PAIRS_PER_GROUP = 10
CANDIDATES = 400
SEED = 0


@dataclass(frozen=True)
class _Wanted:
    """A group of examples: its name, whether its pairs were kept, and their order: `sign` times the preference or, next
    to a threshold, the margin; lowest first. Without scores (sign 0) the order is a random draw."""

    name: str
    kept: bool
    sign: int = 0
    by_margin: bool = False


SCORED_GROUPS = (
    _Wanted("highest", kept=True, sign=-1),
    _Wanted("above", kept=True, sign=1, by_margin=True),
    _Wanted("below", kept=False, sign=-1, by_margin=True),
    _Wanted("lowest", kept=False, sign=1),
)
DRAWN_GROUPS = (_Wanted("kept", kept=True), _Wanted("pruned", kept=False))


@dataclass(frozen=True)
class _PartPairs:
    """A part's pairs that reached the step, in seeded order: rows, whether kept, and their scores; `preference` is
    higher for better pairs, `margin` is the preference less that of the last pair kept in the same group. All 0 without
    scores."""

    index: int
    rows: NDArray[np.int64]
    kept: NDArray[np.bool_]
    scores: NDArray[np.floating]
    preference: NDArray[np.floating]
    margin: NDArray[np.floating]


def example_pairs(steps: list[SelectedStep]) -> Examples | None:
    """Return example pairs of the last step that pruned; None if no step pruned."""
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
    groups = [ExampleGroup(name=group.name, kept=group.kept, pairs=_group(catalog, parts, group)) for group in wanted]
    score = step.scored.label if step.scored else None
    return Examples(step=step.name, score=score, parts_read=len(chosen), num_parts=len(sizes), groups=groups)


def _part_pairs(step: SelectedStep, index: int, num_rows: int, draw: np.random.Generator) -> _PartPairs:
    reached = KeepList(step.incoming).mask(index, num_rows)
    rows = np.flatnonzero(reached)
    kept = KeepList(step.outgoing).mask(index, num_rows)[reached]
    scores: NDArray[np.floating] = np.zeros(len(rows))
    preference = margin = scores
    if step.scored is not None:
        scores, groups = step.scored.read(index, rows)
        preference = margin = step.scored.preference(scores)
        if groups is not None:
            limits = step.last_kept
            margin = preference - np.array([limits.get(group, np.inf) for group in groups.tolist()])
    order = draw.permutation(len(rows))
    order = order[np.isfinite(scores[order])]
    return _PartPairs(index, rows[order], kept[order], scores[order], preference[order], margin[order])


def _group(catalog: Catalog, parts: list[_PartPairs], wanted: _Wanted) -> list[Example]:
    found = [placed for part in parts for placed in _best(catalog, part, wanted)]
    found.sort(key=lambda placed: placed[0])
    return list(_distinct(pair for _, pair in found))[:PAIRS_PER_GROUP]


def _best(catalog: Catalog, part: _PartPairs, wanted: _Wanted) -> Iterator[tuple[float, Example]]:
    places = wanted.sign * (part.margin if wanted.by_margin else part.preference)
    mine = np.flatnonzero(part.kept == wanted.kept)
    mine = mine[np.argsort(places[mine], kind="stable")][:CANDIDATES]
    labels = catalog.table(part.index, ("key", "caption")).take(part.rows[mine]).to_pylist()
    seen: set[str] = set()
    for row, place, score, label in zip(
        part.rows[mine].tolist(), places[mine].tolist(), part.scores[mine].tolist(), labels, strict=True
    ):
        pair = example(part.index, row, label, score if wanted.sign else None)
        if pair.caption not in seen and len(seen) < PAIRS_PER_GROUP:
            seen.add(pair.caption)
            yield place, pair


def _distinct(examples: Iterator[Example]) -> Iterator[Example]:
    seen: set[str] = set()
    for pair in examples:
        if pair.caption not in seen:
            seen.add(pair.caption)
            yield pair
