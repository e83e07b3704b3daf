"""A budgeted step's keep list: exactly its budget of the pairs that reach it, those that rank highest, over all or
within each of k groups.

The keys stay with their parts: each round of the search for the thresholds brings back one histogram for a block of
parts, the last round the ties of each part (`pruning.cut`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import Budgeted
from orchestrator.data.catalog import PartRows, part_rows
from orchestrator.data.keep_list import KeepList, Mask, pack
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import MAX_ANSWER_BLOCKS, PartResult, Work, build_parts, over_blocks
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, PairFlow, Stage, by_groups
from orchestrator.errors import UserError
from orchestrator.pruning.threshold import Cut, budget, find_cut, keep_mask, share_ties

VERSION = 2
EXCLUDED = -1
"""The group of a pair that cannot be kept."""


class Ranked(NamedTuple):
    """Of some pairs: keys uint64 [n], higher is kept, and groups int [n] (`EXCLUDED` or 0 to k - 1); `None`: all 0."""

    keys: NDArray[np.uint64]
    groups: NDArray[np.integer] | None


class Rank(Protocol):
    """Ranks the given rows of a part, those that reached the step, ascending."""

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> Ranked: ...


class Ranking(NamedTuple):
    """A rank, the pairs int64 [k] that each group holds (`None`: one group, to be counted), and how many int64 [k] of
    them are kept."""

    rank: Rank
    sizes: NDArray[np.int64] | None
    wanted: NDArray[np.int64]


def num_wanted(step: Step, num_pairs: int) -> int:
    """A step's budget, of the pairs that reach it. Errors: `UserError` when it asks for more than those."""
    settings = step.settings
    assert isinstance(settings, Budgeted)
    if settings.keep_pairs is None:
        return budget(num_pairs, settings.keep_fraction)
    if settings.keep_pairs > num_pairs:
        raise UserError(
            f"selection.{step.name}.keep_pairs={settings.keep_pairs:,}, but only {num_pairs:,} pairs reach the step; "
            f"lower it, or let the steps before keep more"
        )
    return settings.keep_pairs


def budget_stage(step: Step, *, scored: Artifact | None, ranking: Callable[[int], Ranking], does: str) -> Stage:
    """The stage that cuts. `ranking(budget)` is asked once all before it is there; `scored` is what it goes by."""
    settings = step.settings
    assert isinstance(settings, Budgeted)
    artifact = Artifact.of(
        step.store_uri,
        "keep",
        version=VERSION,
        catalog=step.catalog.artifact,
        incoming=step.incoming,
        settings=settings.model_dump(exclude={"embedding", "clustering"}),
        scored=scored.fingerprint if scored else None,
    )

    def build(display: Display) -> Artifact:
        reached = KeepList(step.incoming).num_pairs
        started = time.monotonic()
        threshold = find_threshold(step, ranking(num_wanted(step, reached)))
        display.line(f"{step.name}: threshold found in {time.monotonic() - started:.1f} s")
        work = partial(_mask_work, threshold)
        build_parts(artifact, part_rows(step.catalog), work, display=display, name=step.name)
        assert artifact.totals["kept"] == num_wanted(step, reached), "a budgeted step keeps exactly its budget"
        return artifact

    kept = f"{settings.keep_pairs:,}" if settings.keep_pairs else f"{settings.keep_fraction:.1%} of the"
    return Stage(
        name=step.name,
        role=Role.KEEP,
        step=step.name,
        does=f"{does}: {kept} pairs",
        artifact=artifact,
        build=build,
        flow=PairFlow(keep_fraction=settings.keep_fraction, keep_pairs=settings.keep_pairs),
        # the search for the threshold, which goes over the pairs several times
        scaling=CostScaling(num_tasks=by_groups(MAX_ANSWER_BLOCKS)),
    )


@dataclass(frozen=True)
class Threshold:
    """What a search came to: which pairs of any part are kept. `ties` are each part's groups and how many of the pairs
    that equal the group's threshold it may keep."""

    incoming: KeepList
    rank: Rank
    cut: Cut
    ties: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]

    def kept(self, part: PartRows, rows: NDArray[np.int64]) -> Mask:
        """Bool [n] of the part's rows that reached the step."""
        keys, groups = self.rank(part, rows)
        groups = np.zeros(len(keys), np.int64) if groups is None else groups
        inside = groups != EXCLUDED
        kept = np.zeros(len(rows), bool)
        none = np.empty(0, np.int64)
        kept[inside] = keep_mask(keys[inside], groups[inside], self.cut, *self.ties.get(part.index, (none, none)))
        return kept


def find_threshold(step: Step, ranking: Ranking) -> Threshold:
    """The search, over blocks of parts. Errors: `UserError` when a group holds fewer pairs than are wanted of it."""
    search = _Search(KeepList(step.incoming), ranking.rank)
    parts, sizes = part_rows(step.catalog), ranking.sizes
    if sizes is None:
        sizes = np.array([sum(over_blocks(parts, search.count))])
    if (ranking.wanted > sizes).any():
        raise UserError(
            f"selection.{step.name}: its budget is {ranking.wanted.sum():,} pairs, but only {sizes.sum():,} of those "
            f"that reach it have what it goes by (an embedding, a score); lower keep_fraction or keep_pairs"
        )
    cut = find_cut(partial(_total_histogram, search, parts), sizes, ranking.wanted)
    found = list(over_blocks(parts, partial(search.ties, cut)))
    part, group, count = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(part, kind="stable")
    part, group, count = part[order], group[order], count[order]
    allowed = share_ties(cut, part, group, count)
    starts, ends = np.flatnonzero(np.diff(part, prepend=-1)), np.flatnonzero(np.diff(part, append=-1)) + 1
    ties = {int(part[start]): (group[start:end], allowed[start:end]) for start, end in zip(starts, ends, strict=True)}
    return Threshold(search.incoming, ranking.rank, cut, ties)


class _Search:
    """One block of parts' answers, where their keys are."""

    def __init__(self, incoming: KeepList, rank: Rank):
        self.incoming, self.rank = incoming, rank

    def _ranked(self, part: PartRows) -> Ranked:
        keys, groups = self.rank(part, np.flatnonzero(self.incoming.mask(part.index, part.num_rows)))
        if groups is None:
            return Ranked(keys, np.zeros(len(keys), np.int64))
        return Ranked(keys[groups != EXCLUDED], groups[groups != EXCLUDED])

    def count(self, parts: list[PartRows]) -> int:
        """How many pairs can be kept at all."""
        return sum(len(self._ranked(part).keys) for part in parts)

    def histogram(self, cut: Cut, parts: list[PartRows]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The parts' histograms of this round, added up: the places in it that are not 0, and what is there."""
        total = reduce(add, (cut.histogram(*self._ranked(part)) for part in parts)).ravel()
        places = np.flatnonzero(total)
        return places, total[places]

    def ties(self, cut: Cut, parts: list[PartRows]) -> tuple[NDArray[np.int64], ...]:
        """Parts, groups and numbers of the pairs at their group's threshold."""
        found = [(part.index, *cut.ties(*self._ranked(part))) for part in parts]
        part = np.concatenate([np.full(len(group), index) for index, group, _ in found])
        return part, np.concatenate([group for _, group, _ in found]), np.concatenate([count for *_, count in found])


def _total_histogram(search: _Search, parts: list[PartRows], cut: Cut) -> NDArray[np.int64]:
    total = np.zeros(cut.shape, np.int64)
    for places, counts in over_blocks(parts, partial(search.histogram, cut)):
        total.reshape(-1)[places] += counts
    return total


def _mask_work(threshold: Threshold) -> Work:
    def work(part: PartRows) -> PartResult:
        rows = np.flatnonzero(threshold.incoming.mask(part.index, part.num_rows))
        mask = np.zeros(part.num_rows, bool)
        mask[rows[threshold.kept(part, rows)]] = True
        return pack(mask, reached=len(rows))

    return work
