"""An external keep list as a step: the pairs that reach the step and are on the list stay.

The list may come from others (DataComp's uids, a Parquet of keys) or be an export of this project: a caption table is
pruned before anything is downloaded, and its list is then applied to the downloaded shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from orchestrator.selection.filter import Verdict, filter_stage
from orchestrator.selection.score_column import FinishedStep, ScoreColumn


def stages(step: Step) -> list[Stage]:
    """The join of the list with the pool, and the keep list. The totals of the join count both sides.

    Errors: `ConfigError` for a list that does not exist; when built, `UserError` if the pool lacks more of the list
    than `max_missing` allows."""
    settings = step.settings
    assert isinstance(settings, KeepListStep)
    setting, listed = f"selection.{step.name}", open_list(settings, step.name)
    join = join_stages(step.store_uri, step.catalog, listed, label=step.name)
    joined = Joined(join[-1].artifact)
    keep = filter_stage(
        step,
        partial(ListedRule, joined),
        does="keep the pairs on the external list",
        aligned=joined.artifact,
        settings=settings.model_dump(exclude={"uri"}),
    )

    return [*join, replace(keep, build=BuildListed(setting, settings, joined, keep.build))]


@dataclass(frozen=True)
class BuildListed:
    """Builds the keep list, after a check that the pool has enough of the list."""

    setting: str
    settings: KeepListStep
    joined: Joined
    build: Callable[[Display], object]

    def __call__(self, display: Display) -> object:
        """Checks the totals of the join, then builds."""
        _check_missing(self.settings, self.setting, self.joined)
        return self.build(display)


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """None: a pair is on the list or it is not."""
    return None


def open_list(settings: KeepListStep, name: str) -> ExternalList:
    """The list that a step's settings name. Errors: `ConfigError` for a list that does not exist."""
    return ExternalList.find(
        settings.uri,
        match_by=settings.match_by,
        match_column=settings.match_column,
        setting=f"selection.{name}",
    )


@dataclass(frozen=True)
class ListedRule:
    """Keeps the pairs that the list names."""

    joined: Joined

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        """The verdict on the given rows."""
        listed = self.joined.part(part).file[rows] >= 0
        return Verdict(listed, {"not_on_the_list": int((~listed).sum())})


def _check_missing(settings: KeepListStep, setting: str, joined: Joined) -> None:
    totals = joined.totals
    # a row without a value to match by is on the list, but no pair of the pool can be it
    empty = totals["list_empty"]
    missing = totals["list_unmatched"] + empty
    distinct = totals["list_rows"] - totals["duplicate_list"]
    if missing > settings.max_missing * distinct:
        without = f"; {empty:,} rows of the list have no {settings.match_by}" if empty else ""
        raise UserError(
            f"{setting}: the pool lacks {missing:,} of the {distinct:,} pairs on the list, matched by "
            f"{settings.match_by}; at most {settings.max_missing:.1%} allowed (only on the list: "
            f"{', '.join(totals['list_examples']) or 'none'}; only in the pool: "
            f"{', '.join(totals['pool_examples']) or 'none'}{without}); "
            f"check {setting}.match_by and match_column, or raise {setting}.max_missing"
        )
