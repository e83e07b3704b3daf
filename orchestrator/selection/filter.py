"""The keep list of a filter: the pairs that reach the step and pass a rule, with a count of the others by reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.catalog import PartRows, part_rows
from orchestrator.data.keep_list import KeepList, Mask, pack
from orchestrator.data.step import Step
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, Summary
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, PairFlow, Stage, by_part, in_blocks
from orchestrator.selection.score_column import ScoreColumn

logger = logging.getLogger(__name__)
VERSION = 1


class Verdict(NamedTuple):
    """For the pairs of a part that reached the step: which are kept, bool [n], how many were dropped for each reason,
    and further counts for the manifest."""

    keep: Mask
    reasons: Mapping[str, int]
    counts: Mapping[str, Any] = MappingProxyType({})


Rule = Callable[[PartRows, NDArray[np.int64]], Verdict]
"""The verdict on the given rows of a part (those that reached the step, ascending)."""


def filter_stage(
    step: Step,
    make_rule: Callable[[], Rule],
    *,
    does: str,
    loads: bool = False,
    check: Callable[[list[Summary]], None] | None = None,
    **made_from: Any,
) -> Stage:
    """The stage that applies a rule. `make_rule()` is called for every part or, where the rule `loads` something, once
    in each actor. `check(summaries)` may raise before the keep list is complete. `made_from` are the inputs and
    settings of the rule."""
    artifact = Artifact.of(
        step.store_uri, "keep", version=VERSION, catalog=step.catalog.artifact, incoming=step.incoming, **made_from
    )

    return Stage(
        name=step.name,
        role=Role.KEEP,
        step=step.name,
        does=does,
        artifact=artifact,
        build=BuildFilter(artifact, step, make_rule, loads, check),
        flow=PairFlow(is_filter=True),
        scaling=CostScaling(num_tasks=by_part if loads else in_blocks),
    )


@dataclass(frozen=True)
class BuildFilter:
    """Builds the keep list of a filter: in actors where the rule loads something, else in tasks."""

    artifact: Artifact
    step: Step
    make_rule: Callable[[], Rule]
    loads: bool
    check: Callable[[list[Summary]], None] | None

    def __call__(self, display: Display) -> Artifact:
        """Writes the mask of every part."""
        PartsJob(
            self.artifact,
            part_rows(self.step.catalog),
            partial(FilterPart.make, KeepList(self.step.incoming), self.make_rule),
            name=self.step.name,
            num_actors=(self.step.num_actors or ray_cluster.num_cpus()) if self.loads else None,
            check=self.check,
        ).build(display)
        totals = self.artifact.totals
        counts = (totals["kept"], totals["reached"], totals.get("reasons", {}))
        logger.info("%s: kept %d of %d pairs; dropped by reason: %s", self.step.name, *counts)
        return self.artifact


@dataclass(frozen=True)
class FilterPart:
    """The work on one part: its bits of the keep list."""

    incoming: KeepList
    rule: Rule

    @classmethod
    def make(cls, incoming: KeepList, make_rule: Callable[[], Rule]) -> FilterPart:
        """Makes the rule, in the process that applies it."""
        return cls(incoming, make_rule())

    def __call__(self, part: PartRows) -> PartResult:
        """The part's mask, and counts by reason."""
        rows = np.flatnonzero(self.incoming.mask(part.index, part.num_rows))
        verdict = self.rule(part, rows)
        mask = np.zeros(part.num_rows, bool)
        mask[rows[verdict.keep]] = True
        return pack(mask, reached=len(rows), reasons=dict(verdict.reasons), **verdict.counts)


@dataclass(frozen=True)
class ThresholdRule:
    """Keeps the pairs with a score equal to the threshold or better, in the precision of the scores. `missing` and
    `beyond` name the reasons to drop a pair: it has no score, or its score is worse."""

    column: ScoreColumn
    threshold: float
    missing: str
    beyond: str

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        """The verdict on the given rows."""
        values = self.column.read(part.index, rows).values
        limit = np.array(self.threshold, values.dtype)
        missing = np.isnan(values)
        # a comparison with NaN is false: a pair without a score is not kept
        keep = self.column.preference(values) >= self.column.preference(limit)
        return Verdict(keep, {self.missing: int(missing.sum()), self.beyond: int((~keep & ~missing).sum())})
