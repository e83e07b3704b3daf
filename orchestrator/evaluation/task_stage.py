"""Measure benchmark tasks, one artifact per task.

A measured task is kept if the command is killed later, and reused by any list that includes it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.config import EvaluationConfig, Limits
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display, StageProgress
from orchestrator.errors import UserError, mistake_in, one_line
from orchestrator.evaluation.check import problem_of
from orchestrator.evaluation.task_metrics import averages
from orchestrator.evaluation.tasks import Task, Tasks
from orchestrator.storage.files import StoreError

if TYPE_CHECKING:
    from orchestrator.evaluation.embed import Embedder

VERSION = 2
DEFAULT_LIMITS = Limits()


def task_artifacts(store_uri: str, tasks: Tasks, models: str) -> dict[str, Artifact]:
    """Return the artifact of each task by key; `models` is the fingerprint of the models."""
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
    """Return the fingerprint part of the task table: name, group, and artifact or reason for skipping, by task."""
    became = {key: artifact.fingerprint for key, artifact in artifacts.items()} | dict(tasks.skipped)
    return {key: [config.name, config.group, became[key]] for key, config in settings.tasks.items()}


def measure_tasks(
    embedder: Embedder,
    tasks: Tasks,
    artifacts: Mapping[str, Artifact],
    settings: EvaluationConfig,
    display: Display,
    progress: StageProgress,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, dict[str, Any]]:
    """Measure the missing tasks; return, by model, lists of rows: `results`, `skipped` and `averages`.

    A task with unusable files, or with more unusable samples than `limits` allow, is skipped like a missing one.
    Errors: `UserError` if no task is left; `StoreError` if the storage fails."""
    skipped = dict(tasks.skipped)
    for key, reason in skipped.items():
        display.warn(f"{settings.tasks[key].name}: skipped, {reason}")
    for task in tasks.found:
        name, artifact = task.config.name, artifacts[task.key]
        is_reused = artifact.is_complete()
        if not is_reused:
            progress.update(progress.done, name)
            problem = problem_of(task, limits) or _measure(embedder, task, artifact, progress)
            if problem is not None:
                skipped[task.key] = problem
                display.warn(f"{name}: skipped, {problem}")
                continue
        values = ", ".join(f"{model} {numbers['value']:.2%}" for model, numbers in artifact.totals.items())
        display.line(f"{name}: {task.config.metric} of {values}{', reused' if is_reused else ''}")
    progress.update(progress.done)
    measured = Tasks(tuple(task for task in tasks.found if task.key not in skipped), skipped)
    if not measured.found:
        first = tasks.found[0]
        raise UserError(f"none of the {len(skipped)} tasks can be measured; {first.key}: {skipped[first.key]}")
    tables = {name: _table(name, measured, artifacts, settings) for name in embedder.names}
    _show_averages(tables, display)
    return tables


def _measure(embedder: Embedder, task: Task, artifact: Artifact, progress: StageProgress) -> str | None:
    # returns the reason if the task cannot be measured; imports torch and open_clip, which a plan does not need
    from orchestrator.evaluation.measure_task import measure_task

    started = time.monotonic()
    try:
        found = measure_task(embedder, task, progress)
    except Exception as error:
        mistake = mistake_in(error)
        if mistake is None or isinstance(mistake, StoreError):
            raise
        return one_line(mistake).removeprefix(f"{task.config.name}: ")
    artifact.publish(totals=found, parts=[], seconds=time.monotonic() - started)
    return None


def _show_averages(tables: Mapping[str, dict[str, Any]], display: Display) -> None:
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
