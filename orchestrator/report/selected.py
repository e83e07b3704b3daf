"""The report's account of selection: counts at each step, what each step was asked for, and what the source lacked."""

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
    """A step as it ran: over which catalog, the keep list that reached it, the one that left it, and its scores and its
    assignment to clusters, if it has any."""

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
    """The keep list of the whole pool, where selection began."""
    return record.find(Role.POOL)


def captioned(record: RunRecord) -> Artifact | None:
    """The keep list of every pair of the pool with an image and a caption; None where fine-tuning begins from what a
    step left (`finetune.after`), whose captioned pairs are not all."""
    found, whole = record.find(Role.CAPTIONED), pool(record)
    if found is None or whole is None:
        return None
    return found if found.made_from.get("among") in (None, whole.fingerprint) else None


def selected_steps(record: RunRecord) -> list[SelectedStep]:
    """The steps in the order of the config; one without a keep list of its own (`all`) passes on what reached it."""
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
    """What each step was asked for and did."""
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
        no_words=_no_words(step),
    )


def _budget(step: SelectedStep, pairs_in: int) -> int | None:
    # a step with a threshold goes by that, whatever its budget is set to
    if "keep_fraction" not in step.settings or step.settings.get("threshold") is not None:
        return None
    return step.settings.get("keep_pairs") or budget(pairs_in, step.settings["keep_fraction"])


def _reasons(step: SelectedStep) -> dict[str, int]:
    if step.outgoing == step.incoming:
        return {}
    told = step.outgoing.totals.get("reasons")
    if told is None:
        embedded = step.assigned.totals["embedded"] if step.assigned else KeepList(step.incoming).num_pairs
        told = {
            NO_EMBEDDING: KeepList(step.incoming).num_pairs - embedded,
            BELOW_THE_CUT: embedded - KeepList(step.outgoing).num_pairs,
        }
    return {reason: number for reason, number in told.items() if number}


def _threshold(step: SelectedStep) -> float | None:
    # several groups have several thresholds
    if step.scored is None or len(step.last_kept) != 1:
        return None
    (preference,) = step.last_kept.values()
    return step.scored.preference(np.array([preference])).item() if np.isfinite(preference) else None


def _no_words(step: SelectedStep) -> int | None:
    return step.scored.artifact.totals.get("no_words") if step.scored else None


def funnel(record: RunRecord, steps: list[SelectedStep]) -> list[FunnelRow]:
    """The counts, from the source to what each training phase saw."""
    return list(_funnel(record, steps))


def _funnel(record: RunRecord, steps: list[SelectedStep]) -> Iterator[FunnelRow]:
    start = pool(record)
    if start is None:
        return
    yield FunnelRow(name="source", what="pairs in the source", pairs=start.totals["rows"])
    has_images = bool(start.made_from["has_images"])
    yield FunnelRow(
        name="pool", what="with an image" if has_images else "with a row to select by", pairs=KeepList(start).num_pairs
    )
    for step in steps:
        yield FunnelRow(name=step.name, what=f"kept by {step.name}", pairs=KeepList(step.outgoing).num_pairs)
    for kind, what in (("pretrain", "pre-trained on"), ("finetune", "fine-tuned on")):
        for phase in record.of_kind(kind):
            yield FunnelRow(name=kind, what=what, pairs=phase.totals["pairs"])


def num_captionless(record: RunRecord, steps: list[SelectedStep]) -> int | None:
    """Pairs of the pool whose caption is missing or empty; null where no stage has counted them."""
    start, whole = pool(record), captioned(record)
    if start is not None and whole is not None:
        return KeepList(start).num_pairs - KeepList(whole).num_pairs
    counted = (_no_words(step) for step in steps if step.incoming == start)
    return next((count for count in counted if count is not None), None)


def catalog_skips(record: RunRecord) -> CatalogSkips | None:
    """What was wrong with the source, by kind, with names."""
    for catalog in record.of_kind("catalog"):
        totals = catalog.totals
        return CatalogSkips(
            broken_shards=totals.get("broken_shards", 0),
            problems=totals.get("problems", {}),
            examples=totals.get("examples", []),
        )
    return None
