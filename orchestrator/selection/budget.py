"""The keep list of a step with a budget: exactly that many of the pairs that reach the step, those with the highest
keys, over all pairs or within each of k groups.

The keys stay where the parts are. Each round of the search for the thresholds sends one histogram of every block of
parts to the driver, and the last round the number of ties in each part (`pruning.threshold`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import Budgeted
from orchestrator.data.catalog import PartRows, part_rows
from orchestrator.data.keep_list import KeepList, Mask, pack
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import MAX_ANSWER_BLOCKS, PartResult, PartsJob, over_blocks
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, PairFlow, Stage, by_groups
from orchestrator.errors import UserError
from orchestrator.pruning.threshold import TopKThresholds, budget, find_thresholds, keep_mask, share_ties, sortable
from orchestrator.selection.score_column import ScoreColumn

logger = logging.getLogger(__name__)
VERSION = 2
EXCLUDED = -1
"""The group of a pair that cannot be kept."""


class GroupedKeys(NamedTuple):
    """The keys uint64 [n] of some pairs, the highest are kept, and their groups int [n]: `EXCLUDED` or 0 to k - 1;
    None: all in group 0."""

    keys: NDArray[np.uint64]
    groups: NDArray[np.integer] | None


class KeyReader(Protocol):
    """Reads the keys of the given rows of a part, those that reached the step, ascending. Picklable."""

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> GroupedKeys: ...


class TopK(NamedTuple):
    """A problem: the keys, how many pairs int64 [k] each group has (None: one group, still to be counted), and how many
    of them int64 [k] are wanted."""

    keys: KeyReader
    sizes: NDArray[np.int64] | None
    wanted: NDArray[np.int64]


@dataclass(frozen=True)
class ScoreKeys:
    """The keys of a score: the order of the scores, in the groups of the column. A pair without a score is excluded."""

    column: ScoreColumn

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> GroupedKeys:
        """Keys and groups of the given rows."""
        values, groups = self.column.read(part.index, rows)
        missing = np.isnan(values)
        if missing.any():
            # NaN has no key; the group excludes the pair, whatever the key is
            values = np.where(missing, values.dtype.type(0), values)
            groups = np.where(missing, EXCLUDED, 0 if groups is None else groups)
        return GroupedKeys(sortable(self.column.preference(values)), groups)


def num_wanted(step: Step, num_pairs: int) -> int:
    """The budget of a step that `num_pairs` pairs reach. Errors: `UserError` for a budget of more than those."""
    settings = step.settings
    assert isinstance(settings, Budgeted)
    if settings.keep_pairs is None:
        return budget(num_pairs, settings.keep_fraction)
    if settings.keep_pairs > num_pairs:
        raise exceeded(step.name, settings.keep_pairs, num_pairs)
    return settings.keep_pairs


def exceeded(step: str, keep_pairs: int, num_pairs: int) -> UserError:
    """Return the error for a budget of more pairs than reach the step."""
    return UserError(
        f"selection.{step}.keep_pairs={keep_pairs:,}, but only {num_pairs:,} pairs reach the step; lower it, or let "
        "the steps before it keep more"
    )


def budget_stage(
    step: Step, *, scored: Artifact | None, top_k: Callable[[int], TopK], does: str, **made_from: Any
) -> Stage:
    """The stage that keeps the budget. `top_k(budget)` is called once its inputs are complete; `scored` is the artifact
    that the keys are computed from."""
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
        **made_from,
    )

    kept = f"{settings.keep_pairs:,}" if settings.keep_pairs else f"{settings.keep_fraction:.1%} of the"
    return Stage(
        name=step.name,
        role=Role.KEEP,
        step=step.name,
        does=f"{does}: {kept} pairs",
        artifact=artifact,
        build=BuildBudget(artifact, step, top_k),
        flow=PairFlow(keep_fraction=settings.keep_fraction, keep_pairs=settings.keep_pairs),
        # the search for the threshold, which goes over the pairs several times
        scaling=CostScaling(num_tasks=by_groups(MAX_ANSWER_BLOCKS)),
    )


@dataclass(frozen=True)
class BuildBudget:
    """Builds the keep list of a step with a budget."""

    artifact: Artifact
    step: Step
    top_k: Callable[[int], TopK]

    def __call__(self, display: Display) -> Artifact:
        """Finds the thresholds, then writes the mask of every part."""
        name, reached = self.step.name, KeepList(self.step.incoming).num_pairs
        wanted = num_wanted(self.step, reached)
        started = time.monotonic()
        found = find_top_k(self.step, self.top_k(wanted))
        seconds = time.monotonic() - started
        display.line(f"{name}: threshold found in {seconds:.1f} s")
        PartsJob(self.artifact, part_rows(self.step.catalog), partial(MaskOfPart, found), name=name).build(display)
        assert self.artifact.totals["kept"] == wanted, "a step with a budget keeps exactly its budget"
        logger.info("%s: kept %d of %d pairs, threshold found in %.1f s", name, wanted, reached, seconds)
        return self.artifact


@dataclass(frozen=True)
class TopKMask:
    """The solution: which pairs of any part are kept. `ties` has, for a part, the groups with keys that equal their
    threshold and how many of those the part keeps."""

    incoming: KeepList
    keys: KeyReader
    thresholds: TopKThresholds
    ties: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]

    def kept(self, part: PartRows, rows: NDArray[np.int64]) -> Mask:
        """Bool [n] of the part's rows that reached the step."""
        keys, groups = self.keys(part, rows)
        groups = np.zeros(len(keys), np.int64) if groups is None else groups
        inside = groups != EXCLUDED
        kept = np.zeros(len(rows), bool)
        none = np.empty(0, np.int64)
        allowed = self.ties.get(part.index, (none, none))
        kept[inside] = keep_mask(keys[inside], groups[inside], self.thresholds, *allowed)
        return kept


@dataclass(frozen=True)
class MaskOfPart:
    """The work on one part: its bits of the keep list."""

    found: TopKMask

    def __call__(self, part: PartRows) -> PartResult:
        """The part's mask and counts."""
        rows = np.flatnonzero(self.found.incoming.mask(part.index, part.num_rows))
        mask = np.zeros(part.num_rows, bool)
        mask[rows[self.found.kept(part, rows)]] = True
        return pack(mask, reached=len(rows))


def find_top_k(step: Step, problem: TopK) -> TopKMask:
    """The search, over blocks of parts. Errors: `UserError` for a group with fewer pairs than are wanted of it."""
    search = PartKeys(KeepList(step.incoming), problem.keys)
    parts, sizes = part_rows(step.catalog), problem.sizes
    if sizes is None:
        sizes = np.array([sum(over_blocks(parts, search.count))])
    if (problem.wanted > sizes).any():
        raise UserError(
            f"selection.{step.name}: the budget is {problem.wanted.sum():,} pairs, but only {sizes.sum():,} of the "
            f"pairs that reach the step have what it needs (an embedding, a score); lower keep_fraction or keep_pairs"
        )
    thresholds = find_thresholds(partial(_total_histogram, search, parts), sizes, problem.wanted)
    found = list(over_blocks(parts, partial(search.ties, thresholds)))
    part, group, count = (np.concatenate(column) for column in zip(*found, strict=True))
    # blocks answer in any order: sorted, each part's ties are one run
    order = np.argsort(part, kind="stable")
    part, group, count = part[order], group[order], count[order]
    allowed = share_ties(thresholds, part, group, count)
    starts, ends = np.flatnonzero(np.diff(part, prepend=-1)), np.flatnonzero(np.diff(part, append=-1)) + 1
    ties = {int(part[start]): (group[start:end], allowed[start:end]) for start, end in zip(starts, ends, strict=True)}
    return TopKMask(search.incoming, problem.keys, thresholds, ties)


@dataclass(frozen=True)
class PartKeys:
    """Answers about a block of parts, computed where their keys are."""

    incoming: KeepList
    keys: KeyReader

    def _of(self, part: PartRows) -> tuple[NDArray[np.uint64], NDArray[np.integer]]:
        keys, groups = self.keys(part, np.flatnonzero(self.incoming.mask(part.index, part.num_rows)))
        if groups is None:
            return keys, np.zeros(len(keys), np.int64)
        return keys[groups != EXCLUDED], groups[groups != EXCLUDED]

    def count(self, parts: list[PartRows]) -> int:
        """How many pairs can be kept."""
        return sum(len(self._of(part)[0]) for part in parts)

    def histogram(self, state: TopKThresholds, parts: list[PartRows]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sum of the parts' histograms of this round: the places where it is not 0, and the counts there."""
        total = reduce(add, (state.histogram(*self._of(part)) for part in parts)).ravel()
        places = np.flatnonzero(total)
        return places, total[places]

    def ties(self, state: TopKThresholds, parts: list[PartRows]) -> tuple[NDArray[np.int64], ...]:
        """Parts, groups and numbers of the pairs with a key equal to the threshold of their group."""
        found = [(part.index, *state.ties(*self._of(part))) for part in parts]
        part = np.concatenate([np.full(len(group), index) for index, group, _ in found])
        return part, np.concatenate([group for _, group, _ in found]), np.concatenate([count for *_, count in found])


def _total_histogram(search: PartKeys, parts: list[PartRows], state: TopKThresholds) -> NDArray[np.int64]:
    total = np.zeros(state.shape, np.int64)
    for places, counts in over_blocks(parts, partial(search.histogram, state)):
        total.reshape(-1)[places] += counts
    return total
