"""A filter's keep list: of the pairs that reach the step, those that pass a rule, and how many failed it for what
reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.catalog import PartRows, part_rows
from orchestrator.data.keep_list import KeepList, Mask, pack
from orchestrator.data.step import Step
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, PairFlow, Stage, by_part, in_blocks

VERSION = 1


class Verdict(NamedTuple):
    """Of a part's pairs that reached the step: bool [n], and how many were dropped for each reason."""

    keep: Mask
    reasons: Mapping[str, int]


Rule = Callable[[PartRows, NDArray[np.int64]], Verdict]
"""The verdict on the given rows of a part (those that reached the step, ascending)."""


def filter_stage(
    step: Step, make_rule: Callable[[], Rule], *, does: str, loads: bool = False, **made_from: Any
) -> Stage:
    """The stage that asks the rule, which `make_rule()` makes: for every part, or once in each actor where it `loads`
    something. `made_from` is what the rule goes by."""
    artifact = Artifact.of(
        step.store_uri, "keep", version=VERSION, catalog=step.catalog.artifact, incoming=step.incoming, **made_from
    )

    def build(display: Display) -> Artifact:
        return build_parts(
            artifact,
            part_rows(step.catalog),
            partial(_work, KeepList(step.incoming), make_rule),
            display=display,
            name=step.name,
            num_actors=(step.num_actors or ray_cluster.num_cpus()) if loads else None,
        )

    return Stage(
        name=step.name,
        role=Role.KEEP,
        step=step.name,
        does=does,
        artifact=artifact,
        build=build,
        flow=PairFlow(is_filter=True),
        scaling=CostScaling(num_tasks=by_part if loads else in_blocks),
    )


def _work(incoming: KeepList, make_rule: Callable[[], Rule]) -> Work:
    rule = make_rule()

    def work(part: PartRows) -> PartResult:
        rows = np.flatnonzero(incoming.mask(part.index, part.num_rows))
        verdict = rule(part, rows)
        mask = np.zeros(part.num_rows, bool)
        mask[rows[verdict.keep]] = True
        return pack(mask, reached=len(rows), reasons=dict(verdict.reasons))

    return work
