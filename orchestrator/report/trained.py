"""Build the report's sections on training and evaluation: curves, cost against full training, results, times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json_lines
from orchestrator.engine.role import TRAINING_ROLES, Role
from orchestrator.engine.run_record import PHASES, RunRecord, StageRecord
from orchestrator.report.schema import (
    CurvePoint,
    ModelEvaluation,
    PhaseReport,
    StageTime,
    TaskTable,
    TrainingCost,
    TrainingSkips,
)
from orchestrator.report.selected import SelectedStep, captioned, pool

# stages that a run without pruning has too, and those that only the report needs
NOT_PRUNING = (
    *(Role.CATALOG, Role.POOL, Role.CAPTIONED),
    *(Role.COUNT_WORDS_BEFORE, Role.SUM_WORDS_BEFORE, Role.COUNT_WORDS_AFTER, Role.SUM_WORDS_AFTER),
    *(*TRAINING_ROLES, Role.EVALUATE),
)
MAX_CURVE_POINTS = 500


def phases(record: RunRecord) -> dict[str, Artifact]:
    """Return the trained phases by name, in order."""
    return {kind: artifact for kind in PHASES for artifact in record.of_kind(kind)}


def phase_report(phase: Artifact) -> PhaseReport:
    """Return a phase's numbers and its curve, reduced to at most `MAX_CURVE_POINTS` points."""
    totals = phase.totals
    records = read_json_lines(phase.path("metrics.jsonl"))
    curve = [CurvePoint(**records[index]) for index in _thinned(len(records))]
    return PhaseReport(
        pairs=totals["pairs"],
        epochs=totals["epochs"],
        samples_seen=totals["samples_seen"],
        steps=totals["steps"],
        loss=totals["loss"],
        num_workers=totals["num_workers"],
        curve=curve,
    )


def _thinned(num_points: int) -> list[int]:
    return np.unique(np.linspace(0, num_points - 1, min(num_points, MAX_CURVE_POINTS)).round().astype(int)).tolist()


def training_skips(phase: Artifact) -> TrainingSkips:
    """Return the samples of a phase that could not be used."""
    return TrainingSkips(skipped=phase.totals["skipped"], examples=phase.totals["examples"])


def cost(record: RunRecord, steps: list[SelectedStep]) -> TrainingCost | None:
    """Compare the samples seen with the same epochs on every pair; None if nothing was trained."""
    trained, whole = phases(record), captioned(record) or pool(record)
    if "pretrain" not in trained or whole is None:
        return None
    epochs = trained["pretrain"].totals["epochs"]
    seen = sum(phase.totals["samples_seen"] for phase in trained.values())
    num_pairs = KeepList(whole).num_pairs
    full = round(epochs * num_pairs)
    kept = KeepList(steps[-1].outgoing).num_pairs / KeepList(steps[0].incoming).num_pairs if steps else 1.0
    return TrainingCost(
        samples_seen=seen,
        full_samples=full,
        samples_fraction=seen / full,
        paper_fraction=kept + _finetuned(trained, num_pairs) / epochs,
        pruning_seconds=_seconds(stage for stage in record.stages if stage.role not in NOT_PRUNING),
        training_seconds=_seconds(stage for stage in record.stages if stage.role in TRAINING_ROLES),
    )


def _finetuned(trained: Mapping[str, Artifact], num_pairs: int) -> float:
    """Return the epochs of fine-tuning as epochs on all `num_pairs`; fine-tuning may use only some of them."""
    if "finetune" not in trained:
        return 0.0
    totals = trained["finetune"].totals
    return totals["epochs"] * totals["pairs"] / num_pairs


def _seconds(stages: Iterable[StageRecord]) -> float:
    return round(sum(stage_time(stage).computed_seconds for stage in stages), 2)


def stage_time(stage: StageRecord) -> StageTime:
    """Return a stage's time, in this run and when it was computed."""
    # another run may have computed a part of the stage before it was interrupted
    computed = stage.artifact.manifest["seconds"]
    if not stage.reused and stage.role not in TRAINING_ROLES:
        computed = max(computed, stage.seconds)
    return StageTime(name=stage.name, reused=stage.reused, seconds=stage.seconds, computed_seconds=computed)


def evaluations(record: RunRecord) -> dict[str, ModelEvaluation]:
    """Return the results of every evaluated model, in the order of training."""
    return {
        name: ModelEvaluation(**{of_set: numbers for of_set, numbers in result.items() if of_set != "tasks"})
        for name, result in _results(record).items()
    }


def task_tables(record: RunRecord) -> dict[str, TaskTable]:
    """Return the benchmark results of every model, in the order of training; empty without benchmark tasks."""
    return {name: TaskTable(**result["tasks"]) for name, result in _results(record).items() if "tasks" in result}


def _results(record: RunRecord) -> dict[str, dict[str, Any]]:
    results = {name: result for artifact in record.of_kind("evaluation") for name, result in artifact.totals.items()}
    order = [*(phase for phase in PHASES if phase in results), *(name for name in results if name not in PHASES)]
    return {name: results[name] for name in order}


def evaluation_skips(result: ModelEvaluation) -> int:
    """Return the number of undecodable images in both evaluation sets."""
    return (result.zero_shot.skipped if result.zero_shot else 0) + int((result.retrieval or {}).get("skipped", 0))
