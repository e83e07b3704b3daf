"""Evaluation as a stage: zero-shot classification and image-text retrieval of every model of a run, in one pass a set,
and the benchmark tasks that the config lists."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from orchestrator.config import Config, EvaluationConfig
from orchestrator.engine.artifact import Artifact, fingerprint
from orchestrator.engine.console import Display
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.evaluation.sets import evaluation_sets, measured_on
from orchestrator.evaluation.task_stage import measure_tasks, measured_tasks, task_artifacts
from orchestrator.evaluation.tasks import open_tasks
from orchestrator.storage import files

VERSION = 2
CONFIG_FILE, LOCAL_SCHEME = "open_clip_config.json", "local-dir:"


def models_stage(config: Config, trained: Mapping[str, Artifact]) -> list[Stage]:
    """The stage that evaluates a run's phases; none where the config names no evaluation set."""
    if not _has_sets(config.evaluation):
        return []
    references = {name: artifact.path("model") for name, artifact in trained.items()}
    made_from = {name: artifact.fingerprint for name, artifact in trained.items()}
    return [_stage(config, references, None, made_from)]


def checkpoint_stage(config: Config) -> Stage:
    """The stage that evaluates one checkpoint: a model folder of ours, or any open_clip reference.

    Errors: `UserError` when there is no checkpoint, or nothing to evaluate it on."""
    if config.checkpoint is None:
        raise UserError(
            "evaluate needs checkpoint= (a model folder, an open_clip name with model.pretrained=, or "
            "hf-hub:ORGANISATION/NAME)"
        )
    if not _has_sets(config.evaluation):
        raise UserError(
            "evaluate needs evaluation.zero_shot.uri= or evaluation.retrieval.uri= (a tar, or a folder of tars), or a "
            "list of tasks, evaluation=datacomp38 evaluation.root=... say"
        )
    reference, pretrained = config.checkpoint, config.model.pretrained
    folder = reference.removeprefix(LOCAL_SCHEME)
    if files.exists(files.join(folder, CONFIG_FILE)):
        # without the scheme: its files are of the fingerprint, and actors in other folders find it
        reference = files.absolute(folder)
    elif reference.endswith((".pt", ".bin", ".safetensors")) and files.exists(reference):
        if config.model.name is None:
            raise UserError(f"{reference} holds weights only: name their architecture, model.name=ViT-B-32 say")
        reference, pretrained = config.model.name, files.absolute(reference)
    made_from = {"reference": reference, "pretrained": pretrained, "files": _files(reference, pretrained)}
    return _stage(config, {"checkpoint": reference}, pretrained, made_from)


def _has_sets(settings: EvaluationConfig) -> bool:
    return bool(settings.zero_shot.uri or settings.retrieval.uri or settings.tasks)


def _files(reference: str, pretrained: str | None) -> dict[str, Any]:
    # another file at the same place is another model
    found: dict[str, Any] = {}
    for place in filter(None, (reference, pretrained)):
        if "://" in place or files.is_path(place):
            fs, path = files.filesystem(place)
            details = fs.find(path, detail=True) if fs.exists(path) else {}
            found |= {
                name: [info["size"], str(info.get("ETag") or info.get("mtime"))] for name, info in details.items()
            }
    return found


def _stage(
    config: Config, references: Mapping[str, str], pretrained: str | None, made_from: Mapping[str, Any]
) -> Stage:
    settings, identity = config.evaluation, fingerprint(dict(made_from))
    sets, tasks = evaluation_sets(settings), open_tasks(settings)
    of_tasks = task_artifacts(config.store, tasks, identity)
    measured = measured_on(settings, sets) | ({"tasks": measured_tasks(settings, tasks, of_tasks)} if of_tasks else {})
    artifact = Artifact.of(config.store, "evaluation", version=VERSION, models=identity, **measured)

    def build(display: Display) -> Artifact:
        # torch and open_clip, which a plan can do without
        from orchestrator.evaluation.embed import Models, measure

        models, started = Models(references=references, pretrained=pretrained), time.monotonic()
        with display.stage("evaluate", unit="images") as progress:
            totals = measure(models, sets, settings, progress)
            if of_tasks:
                tables = measure_tasks(models, tasks, of_tasks, settings, display, progress)
                totals = {name: numbers | {"tasks": tables[name]} for name, numbers in totals.items()}
        artifact.publish(totals=totals, parts=[], seconds=time.monotonic() - started)
        return artifact

    on = [name.replace("_", "-") for name in sets] + ([f"{len(of_tasks)} tasks"] if of_tasks else [])
    return Stage(name="evaluate", does=f"{' and '.join(on)} of {', '.join(references)}", artifact=artifact, build=build)
