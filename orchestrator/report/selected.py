"""The report's account of selection: counts at each step, what each step was asked for, and what the source lacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
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
from orchestrator.selection.wfpp import read_scores

NO_EMBEDDING, BELOW_THE_CUT = "no_embedding", "below_the_cut"


@dataclass(frozen=True)
class SelectedStep:
    """A step as it ran: over which catalog, the keep list that reached it, the one that left it, and the scores or the
    assignment to clusters that it went by, if any."""

    name: str
    settings: dict[str, Any]
    catalog: Catalog
    incoming: Artifact
    outgoing: Artifact
    scored: Artifact | None
    assigned: Artifact | None


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
    incoming = pool(record)
    if incoming is None:
        return []
    catalog = Catalog(record.of_kind("catalog")[0])
    keeps = {stage.step: stage.artifact for stage in record.with_role(Role.KEEP)}
    scores = {artifact.fingerprint: artifact for artifact in record.of_kind("scores")}
    selection, steps = record.config["selection"], []
    for name in selection["steps"]:
        outgoing = keeps.get(name, incoming)
        scored = scores.get(outgoing.made_from.get("scored") or "") if name in keeps else None
        assigned = record.find(Role.ASSIGN_CLUSTERS, name)
        steps.append(SelectedStep(name, selection["settings"][name], catalog, incoming, outgoing, scored, assigned))
        incoming = outgoing
    return steps


def step_reports(steps: list[SelectedStep]) -> list[StepReport]:
    """What each step was asked for and did."""
    return [_step_report(step) for step in steps]


def _step_report(step: SelectedStep) -> StepReport:
    pairs_in = KeepList(step.incoming).num_pairs
    return StepReport(
        name=step.name,
        method=step.settings["method"],
        settings=step.settings,
        pairs_in=pairs_in,
        budget=_budget(step, pairs_in),
        pairs_out=KeepList(step.outgoing).num_pairs,
        reasons=_reasons(step),
        threshold=_lowest_kept_score(step),
        no_words=step.scored.totals["no_words"] if step.scored else None,
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


def _lowest_kept_score(step: SelectedStep) -> float | None:
    if step.scored is None:
        return None
    threshold = min(over_blocks(part_rows(step.catalog), partial(_lowest, step)))
    return threshold if np.isfinite(threshold) else None


def _lowest(step: SelectedStep, parts: list[PartRows]) -> float:
    kept = [_kept_scores(step, part.index, part.num_rows) for part in parts]
    return min((float(scores.min()) for scores in kept if len(scores)), default=np.inf)


def _kept_scores(step: SelectedStep, index: int, num_rows: int) -> np.ndarray:
    assert step.scored is not None
    reached = KeepList(step.incoming).mask(index, num_rows)
    return read_scores(step.scored, index)[KeepList(step.outgoing).mask(index, num_rows)[reached]]


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
    first = next((step for step in steps if step.scored is not None and step.incoming == start), None)
    return first.scored.totals["no_words"] if first and first.scored else None


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
