"""A keep list brought along: the pairs that reach the step and are on the list stay.

The list may have been made by others (DataComp's uids, a Parquet of keys), or be this project's own export: pruned as
a caption table before anything was downloaded, then applied to the shards that came of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import KeepListStep
from orchestrator.data.catalog import PartRows
from orchestrator.data.external_list import ExternalList
from orchestrator.data.join import Joined, join_stages
from orchestrator.data.step import Step
from orchestrator.engine.console import Display
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.selection.filter import Rule, Verdict, filter_stage


def stages(step: Step) -> list[Stage]:
    """The alignment, and the pairs on the list. The counts of both sides are the totals of the alignment.

    Errors: `ConfigError` where there is no list; when built, `UserError` where more of the list than `max_missing`
    allows is not in the pool."""
    settings = step.settings
    assert isinstance(settings, KeepListStep)
    setting, listed = f"selection.{step.name}", open_list(settings, step.name)
    align = join_stages(step.store_uri, step.catalog, listed, label=step.name)
    aligned = Joined(align[-1].artifact)
    keep = filter_stage(
        step,
        partial(_rule, aligned),
        does="keep the pairs on the list brought along",
        aligned=aligned.artifact,
        settings=settings.model_dump(exclude={"uri"}),
    )

    def build(display: Display) -> object:
        _check_missing(settings, setting, aligned)
        return keep.build(display)

    return [*align, replace(keep, build=build)]


def open_list(settings: KeepListStep, name: str) -> ExternalList:
    """The list of the step of that name. Errors: `ConfigError` where there is none."""
    return ExternalList.find(
        settings.uri,
        match_by=settings.match_by,
        match_column=settings.match_column,
        setting=f"selection.{name}",
    )


def _rule(aligned: Joined) -> Rule:
    def rule(part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        listed = aligned.part(part).file[rows] >= 0
        return Verdict(listed, {"not_on_the_list": int((~listed).sum())})

    return rule


def _check_missing(settings: KeepListStep, setting: str, aligned: Joined) -> None:
    totals = aligned.totals
    missing = totals["list_unmatched"]
    distinct = totals["list_rows"] - totals["list_empty"] - totals["duplicate_list"]
    if missing > settings.max_missing * distinct:
        raise UserError(
            f"{setting}: {missing:,} of the list's {distinct:,} are not in the pool by {settings.match_by}, at most "
            f"{settings.max_missing:.1%} allowed (on the list: {', '.join(totals['list_examples'])}; in the pool, not "
            f"on it: {', '.join(totals['pool_examples']) or 'none'}); check {setting}.match_by and match_column, or "
            f"raise {setting}.max_missing"
        )
