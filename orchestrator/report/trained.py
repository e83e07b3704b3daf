"""The report's account of training and evaluation: curves, samples seen against full training, results, seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.run_record import PHASES, RunRecord, StageRecord
from orchestrator.report.schema import (
    Cost,
    CurvePoint,
    ModelEvaluation,
    PhaseReport,
    StageTime,
    TaskTable,
    TrainingSkips,
)
from orchestrator.report.selected import SelectedStep, captioned, pool
from orchestrator.storage import files

# stages before training that a run on everything has, too, or that are for the report
NOT_PRUNING = (
    *("catalog", "pool", "captioned"),
    *("count words, before", "sum words, before", "count words, after", "sum words, after"),
)
MAX_CURVE_POINTS = 500


def phases(record: RunRecord) -> dict[str, Artifact]:
    """The trained phases by name, in order."""
    return {kind: artifact for kind in PHASES for artifact in record.of_kind(kind)}


def phase_report(phase: Artifact) -> PhaseReport:
    """A phase's numbers and its curve, thinned."""
    totals = phase.totals
    lines = files.read(phase.path("metrics.jsonl")).decode().splitlines()
    curve = [CurvePoint(**json.loads(lines[index])) for index in _thinned(len(lines))]
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
    """The samples of a phase that could not be used."""
    return TrainingSkips(skipped=phase.totals["skipped"], examples=phase.totals["examples"])


def cost(record: RunRecord, steps: list[SelectedStep]) -> Cost | None:
    """Samples seen against the same epochs on everything; null when nothing was trained."""
    trained, whole = phases(record), captioned(record) or pool(record)
    if "pretrain" not in trained or whole is None:
        return None
    epochs = trained["pretrain"].totals["epochs"]
    seen = sum(phase.totals["samples_seen"] for phase in trained.values())
    num_pairs = KeepList(whole).num_pairs
    full = round(epochs * num_pairs)
    kept = KeepList(steps[-1].outgoing).num_pairs / KeepList(steps[0].incoming).num_pairs if steps else 1.0
    return Cost(
        samples_seen=seen,
        full_samples=full,
        samples_fraction=seen / full,
        paper_fraction=kept + _finetuned(trained, num_pairs) / epochs,
        pruning_seconds=_seconds(
            stage
            for stage in record.stages
            if stage.kind not in (*PHASES, "evaluation") and stage.name not in NOT_PRUNING
        ),
        training_seconds=_seconds(stage for stage in record.stages if stage.kind in PHASES),
    )


def _finetuned(trained: Mapping[str, Artifact], num_pairs: int) -> float:
    """Epochs of fine-tuning as epochs on all `num_pairs`: it may see what a step left."""
    if "finetune" not in trained:
        return 0.0
    totals = trained["finetune"].totals
    return totals["epochs"] * totals["pairs"] / num_pairs


def _seconds(stages: Iterable[StageRecord]) -> float:
    return round(sum(stage_time(stage).computed_seconds for stage in stages), 2)


def stage_time(stage: StageRecord) -> StageTime:
    """A stage's seconds, in this run and when it was computed."""
    # a stage may have begun in another run that was interrupted
    computed = stage.artifact.manifest["seconds"]
    if not stage.reused and stage.kind not in PHASES:
        computed = max(computed, stage.seconds)
    return StageTime(name=stage.name, reused=stage.reused, seconds=stage.seconds, computed_seconds=computed)


def evaluations(record: RunRecord) -> dict[str, ModelEvaluation]:
    """The results of every model that was evaluated, in the order they were trained."""
    return {
        name: ModelEvaluation(**{of_set: numbers for of_set, numbers in result.items() if of_set != "tasks"})
        for name, result in _results(record).items()
    }


def task_tables(record: RunRecord) -> dict[str, TaskTable]:
    """The results of every model on the benchmark tasks, in the order they were trained; none without such tasks."""
    return {name: TaskTable(**result["tasks"]) for name, result in _results(record).items() if "tasks" in result}


def _results(record: RunRecord) -> dict[str, dict[str, Any]]:
    results = {name: result for artifact in record.of_kind("evaluation") for name, result in artifact.totals.items()}
    order = [*(phase for phase in PHASES if phase in results), *(name for name in results if name not in PHASES)]
    return {name: results[name] for name in order}


def evaluation_skips(result: ModelEvaluation) -> int:
    """Pictures of both evaluation sets that could not be used."""
    return (result.zero_shot.skipped if result.zero_shot else 0) + int((result.retrieval or {}).get("skipped", 0))
