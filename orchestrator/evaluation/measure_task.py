"""Measure models on one benchmark task: classification or retrieval, by its main metric."""

from __future__ import annotations

from typing import Any

from orchestrator.engine.console import StageProgress
from orchestrator.evaluation.embed import Embedder
from orchestrator.evaluation.task_classification import classification
from orchestrator.evaluation.task_retrieval import retrieval
from orchestrator.evaluation.tasks import RETRIEVAL_METRIC, Task


def measure_task(embedder: Embedder, task: Task, progress: StageProgress | None = None) -> dict[str, dict[str, Any]]:
    """Return each model's results: `metrics` by name, the main one as `value`, `num_images`, and undecodable `skipped`.

    Errors: `UserError`, with the task's name, for labels without a class, missing groups or a diverged model."""
    numbers_of = retrieval if task.config.metric == RETRIEVAL_METRIC else classification
    found = numbers_of(embedder, task, progress)
    return {name: {**numbers, "value": numbers["metrics"][task.config.metric]} for name, numbers in found.items()}
