"""Build the report's sections on selection: pairs after each step, settings and results of steps, source problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from orchestrator.data.catalog import Catalog, PartRows, part_rows
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import over_blocks
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.pruning.threshold import budget
from orchestrator.report.schema import CatalogSkips, FunnelRow, StepReport
from orchestrator.selection import finished_steps, score_of
from orchestrator.selection.score_column import ScoreColumn

NO_EMBEDDING, BELOW_THE_CUT = "no_embedding", "below_the_cut"


@dataclass(frozen=True)
class SelectedStep:
    """A finished step: its catalog, the keep lists before (`incoming`) and after it (`outgoing`), and its scores and
    cluster assignment, if it has any."""

    name: str
    settings: Mapping[str, Any]
    catalog: Catalog
    incoming: Artifact
    outgoing: Artifact
    scored: ScoreColumn | None
    assigned: Artifact | None

    @cached_property
    def last_kept(self) -> dict[int, float]:
        """For each group of the score with kept pairs, the preference of the last one kept (`ScoreColumn.preference`);
        empty without scores. One pass over the scores of all parts."""
        found: dict[int, float] = {}
        if self.scored is not None:
            for block in over_blocks(part_rows(self.catalog), partial(_last_kept, self)):
                for group, preference in block.items():
                    found[group] = min(preference, found.get(group, np.inf))
        return found


def _last_kept(step: SelectedStep, parts: list[PartRows]) -> dict[int, float]:
    assert step.scored is not None
    found: dict[int, float] = {}
    for part in parts:
        reached = KeepList(step.incoming).mask(part.index, part.num_rows)
        kept = KeepList(step.outgoing).mask(part.index, part.num_rows)[reached]
        values, groups = step.scored.read(part.index, np.flatnonzero(reached))
        preference = step.scored.preference(values[kept])
        mine = np.zeros(len(preference), np.int64) if groups is None else groups[kept]
        order = np.argsort(mine, kind="stable")
        present, firsts = np.unique(mine[order], return_index=True)
        lowest = np.minimum.reduceat(preference[order], firsts) if present.size else preference
        for group, value in zip(present.tolist(), lowest.tolist(), strict=True):
            found[group] = min(value, found.get(group, np.inf))
    return found


def pool(record: RunRecord) -> Artifact | None:
    """Return the keep list of all usable pairs, before the first step."""
    return record.find(Role.POOL)


def captioned(record: RunRecord) -> Artifact | None:
    """Return the keep list of all pairs with an image and a caption.

    None if fine-tuning uses only the pairs that a step keeps (`finetune.after`), because the list then covers those."""
    found, whole = record.find(Role.CAPTIONED), pool(record)
    if found is None or whole is None:
        return None
    return found if found.made_from.get("among") in (None, whole.fingerprint) else None


def selected_steps(record: RunRecord) -> list[SelectedStep]:
    """Return the steps in order. A step without a keep list (`all`) keeps all pairs that reach it."""
    return [
        SelectedStep(
            name=step.name,
            settings=step.settings,
            catalog=step.catalog,
            incoming=step.incoming,
            outgoing=step.outgoing,
            scored=score_of(step),
            assigned=record.find(Role.ASSIGN_CLUSTERS, step.name),
        )
        for step in finished_steps(record)
    ]


def step_reports(steps: list[SelectedStep]) -> list[StepReport]:
    """Return the settings and the result of each step."""
    return [_step_report(step) for step in steps]


def _step_report(step: SelectedStep) -> StepReport:
    pairs_in = KeepList(step.incoming).num_pairs
    return StepReport(
        name=step.name,
        method=step.settings["method"],
        settings=dict(step.settings),
        pairs_in=pairs_in,
        budget=_budget(step, pairs_in),
        pairs_out=KeepList(step.outgoing).num_pairs,
        reasons=_reasons(step),
        threshold=_threshold(step),
        sizes=step.outgoing.totals.get("sizes", {}),
        no_words=_no_words(step),
    )


def _budget(step: SelectedStep, pairs_in: int) -> int | None:
    # a threshold replaces the budget
    if "keep_fraction" not in step.settings or step.settings.get("threshold") is not None:
        return None
    return step.settings.get("keep_pairs") or budget(pairs_in, step.settings["keep_fraction"])


def _reasons(step: SelectedStep) -> dict[str, int]:
    if step.outgoing == step.incoming:
        return {}
    reasons = step.outgoing.totals.get("reasons")
    if reasons is None:
        embedded = step.assigned.totals["embedded"] if step.assigned else KeepList(step.incoming).num_pairs
        reasons = {
            NO_EMBEDDING: KeepList(step.incoming).num_pairs - embedded,
            BELOW_THE_CUT: embedded - KeepList(step.outgoing).num_pairs,
        }
    return {reason: number for reason, number in reasons.items() if number}


def _threshold(step: SelectedStep) -> float | None:
    # with several groups there is no single threshold
    if step.scored is None or len(step.last_kept) != 1:
        return None
    (preference,) = step.last_kept.values()
    return step.scored.preference(np.array([preference])).item() if np.isfinite(preference) else None


def _no_words(step: SelectedStep) -> int | None:
    return step.scored.artifact.totals.get("no_words") if step.scored else None


def funnel(record: RunRecord, steps: list[SelectedStep]) -> list[FunnelRow]:
    """Return the numbers of pairs, from the source to each training phase."""
    return list(_funnel(record, steps))


def _funnel(record: RunRecord, steps: list[SelectedStep]) -> Iterator[FunnelRow]:
    start = pool(record)
    if start is None:
        return
    yield FunnelRow(name="source", what="pairs in the source", pairs=start.totals["rows"])
    has_images = bool(start.made_from["has_images"])
    yield FunnelRow(
        name="pool", what="pairs with an image" if has_images else "rows in the table", pairs=KeepList(start).num_pairs
    )
    for step in steps:
        yield FunnelRow(name=step.name, what=f"kept by {step.name}", pairs=KeepList(step.outgoing).num_pairs)
    for kind, what in (("pretrain", "used for pre-training"), ("finetune", "used for fine-tuning")):
        for phase in record.of_kind(kind):
            yield FunnelRow(name=kind, what=what, pairs=phase.totals["pairs"])


def num_captionless(record: RunRecord, steps: list[SelectedStep]) -> int | None:
    """Return the number of pairs without a caption; None if no stage has counted them."""
    start, whole = pool(record), captioned(record)
    if start is not None and whole is not None:
        return KeepList(start).num_pairs - KeepList(whole).num_pairs
    counted = (_no_words(step) for step in steps if step.incoming == start)
    return next((count for count in counted if count is not None), None)


def catalog_skips(record: RunRecord) -> CatalogSkips | None:
    """Return the problems of the source: counts by kind, and examples."""
    for catalog in record.of_kind("catalog"):
        totals = catalog.totals
        return CatalogSkips(
            broken_shards=totals.get("broken_shards", 0),
            problems=totals.get("problems", {}),
            examples=totals.get("examples", []),
            captions_from=totals.get("captions_from", {}),
        )
    return None
