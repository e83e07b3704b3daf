"""The tasks of an evaluation, each an artifact of its own: one that is measured is kept when the command is killed, and
reused by any other list that has it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Artifact
from orchestrator.config import EvaluationConfig
from orchestrator.evaluation.task_metrics import averages
from orchestrator.evaluation.tasks import Task, Tasks
from orchestrator.progress import Display, StageProgress

if TYPE_CHECKING:
    from orchestrator.evaluation.embed import Models

VERSION = 1


def task_artifacts(store_uri: str, tasks: Tasks, models: str) -> dict[str, Artifact]:
    """Where each task's numbers are kept, by key; `models` is the fingerprint of the models."""
    return {task.key: _artifact(store_uri, task, models) for task in tasks.found}


def _artifact(store_uri: str, task: Task, models: str) -> Artifact:
    return Artifact.of(
        store_uri,
        "task",
        version=VERSION,
        models=models,
        metric=task.config.metric,
        test=task.test.identity,
        train=task.train and task.train.identity,
    )


def measured_tasks(settings: EvaluationConfig, tasks: Tasks, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """What makes the tasks' table what it is: the found ones' artifacts, the others' reasons, all names and groups."""
    became = {key: artifact.fingerprint for key, artifact in artifacts.items()} | dict(tasks.skipped)
    return {key: [config.name, config.group, became[key]] for key, config in settings.tasks.items()}


def measure_tasks(
    models: Models,
    tasks: Tasks,
    artifacts: Mapping[str, Artifact],
    settings: EvaluationConfig,
    display: Display,
    progress: StageProgress,
) -> dict[str, dict[str, Any]]:
    """Measures what is missing and gives, by model, `results`, what was `skipped`, and `averages`, as lists of rows."""
    # torch and open_clip, which a plan can do without
    from orchestrator.evaluation.measure_task import measure_task

    for key, reason in tasks.skipped.items():
        display.line(f"{settings.tasks[key].name}: skipped, {reason}")
    for task in tasks.found:
        artifact, started = artifacts[task.key], time.monotonic()
        is_reused = artifact.is_complete()
        if not is_reused:
            progress.update(progress.done, task.config.name)
            found = measure_task(models, task, settings, progress)
            artifact.publish(totals=found, parts=[], seconds=time.monotonic() - started)
        values = ", ".join(f"{name} {numbers['value']:.2%}" for name, numbers in artifact.totals.items())
        display.line(f"{task.config.name}: {task.config.metric} of {values}{', reused' if is_reused else ''}")
    progress.update(progress.done)
    tables = {name: _table(name, tasks, artifacts, settings) for name in models.references}
    _tell_averages(tables, display)
    return tables


def _tell_averages(tables: Mapping[str, dict[str, Any]], display: Display) -> None:
    for same in zip(*(table["averages"] for table in tables.values()), strict=True):
        measured, of = same[0]["measured"], same[0]["of"]
        if measured:
            values = ", ".join(f"{name} {row['value']:.2%}" for name, row in zip(tables, same, strict=True))
            mark = ", incomplete" if measured < of else ""
            display.line(f"average over {same[0]['name']} ({measured} of {of}{mark}): {values}")


def _table(model: str, tasks: Tasks, artifacts: Mapping[str, Artifact], settings: EvaluationConfig) -> dict[str, Any]:
    results = {
        task.key: {
            "key": task.key,
            "name": task.config.name,
            "group": task.config.group,
            "metric": task.config.metric,
            **artifacts[task.key].totals[model],
        }
        for task in tasks.found
    }
    return {
        "results": list(results.values()),
        "skipped": [
            {"key": key, "name": settings.tasks[key].name, "reason": reason} for key, reason in tasks.skipped.items()
        ],
        "averages": averages(settings.tasks, {key: result["value"] for key, result in results.items()}),
    }
