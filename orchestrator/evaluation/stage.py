"""The evaluation stage: zero-shot classification, image-text retrieval, and the configured benchmark tasks.

All models of a run are evaluated in one pass over each set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config import Config, EvaluationConfig, Limits
from orchestrator.engine.artifact import Artifact, fingerprint
from orchestrator.engine.console import Display
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.evaluation.check import check_sets
from orchestrator.evaluation.sets import EvaluationSet, evaluation_sets, measured_on, precision_of
from orchestrator.evaluation.task_stage import measure_tasks, measured_tasks, task_artifacts
from orchestrator.evaluation.tasks import Tasks, open_tasks
from orchestrator.storage import files

VERSION = 2
CONFIG_FILE, LOCAL_SCHEME = "open_clip_config.json", "local-dir:"
WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")


def models_stage(config: Config, trained: Mapping[str, Artifact]) -> list[Stage]:
    """Return the stage that evaluates the models of a run; empty if no evaluation set is configured."""
    if not _has_sets(config.evaluation):
        return []
    references = {name: artifact.path("model") for name, artifact in trained.items()}
    made_from = {name: artifact.fingerprint for name, artifact in trained.items()}
    return [_stage(config, references, None, made_from)]


def checkpoint_stage(config: Config) -> Stage:
    """Return the stage that evaluates one checkpoint: a model folder of a run, or any open_clip reference.

    Errors: `UserError` if no checkpoint or no evaluation set is configured."""
    if config.checkpoint is None:
        raise UserError(
            "evaluate needs checkpoint= (a model folder, an open_clip name with model.pretrained=, or "
            "hf-hub:ORGANISATION/NAME)"
        )
    if not _has_sets(config.evaluation):
        raise UserError(
            "evaluate needs evaluation.zero_shot.uri= or evaluation.retrieval.uri= (a tar, or a folder of tars), or a "
            "list of tasks, for example evaluation=datacomp38 evaluation.root=..."
        )
    reference, pretrained = config.checkpoint, config.model.pretrained
    folder = reference.removeprefix(LOCAL_SCHEME)
    if files.exists(files.join(folder, CONFIG_FILE)):
        # an absolute path without the scheme: `_files` finds it for the fingerprint, and so do actors in other folders
        reference = files.absolute(folder)
        _check_weights(reference)
    elif reference.endswith(WEIGHTS) and files.exists(reference):
        if config.model.name is None:
            raise UserError(f"{reference} contains only weights: set their architecture, such as model.name=ViT-B-32")
        reference, pretrained = config.model.name, files.absolute(reference)
    else:
        _check_reference(reference)
    made_from = {"reference": reference, "pretrained": pretrained, "files": _files(reference, pretrained)}
    return _stage(config, {"checkpoint": reference}, pretrained, made_from)


def _check_weights(folder: str) -> None:
    if not any(name.endswith(WEIGHTS) for name in files.names(folder)):
        raise UserError(
            f"checkpoint: {folder} has no weights; expected open_clip_model.safetensors beside {CONFIG_FILE}"
        )


def _check_reference(reference: str) -> None:
    # a path that is no model; a name is looked up by open_clip
    folder = reference.removeprefix(LOCAL_SCHEME)
    if files.exists(files.join(folder, "model", CONFIG_FILE)):
        raise UserError(f"checkpoint: {folder} is the folder of a run: write checkpoint={files.join(folder, 'model')}")
    if reference.endswith(WEIGHTS):
        raise UserError(f"checkpoint: no such file: {reference}")
    if reference != folder or files.is_path(folder):
        raise UserError(f"checkpoint: no model folder at {folder}: expected {CONFIG_FILE} and its weights in it")


def _has_sets(settings: EvaluationConfig) -> bool:
    return bool(settings.zero_shot.uri or settings.retrieval.uri or settings.tasks)


def _files(reference: str, pretrained: str | None) -> dict[str, Any]:
    # another file at the same path is another model
    found: dict[str, Any] = {}
    for place in filter(None, (reference, pretrained)):
        if "://" in place or files.is_path(place):
            fs, path = files.filesystem(place)
            details = fs.find(path, detail=True) if fs.exists(path) else {}
            found |= {
                name: [info["size"], str(info.get("ETag") or info.get("mtime") or info.get("blob_id"))]
                for name, info in details.items()
            }
    return found


def _stage(
    config: Config, references: Mapping[str, str], pretrained: str | None, made_from: Mapping[str, Any]
) -> Stage:
    settings, identity = config.evaluation, fingerprint({**made_from, **precision_of(config.evaluation)})
    sets, tasks = evaluation_sets(config), open_tasks(settings)
    of_tasks = task_artifacts(config.store, tasks, identity)
    measured = measured_on(settings, sets) | ({"tasks": measured_tasks(settings, tasks, of_tasks)} if of_tasks else {})
    artifact = Artifact.of(config.store, "evaluation", version=VERSION, models=identity, **measured)

    build = Evaluate(
        artifact=artifact,
        references=dict(references),
        pretrained=pretrained,
        settings=settings,
        sets=sets,
        tasks=tasks,
        of_tasks=of_tasks,
        limits=config.source.limits,
    )
    on = [name.replace("_", "-") for name in sets] + ([f"{len(of_tasks)} tasks"] if of_tasks else [])
    does = f"evaluate {', '.join(references)} on {' and '.join(on)}"
    return Stage(name="evaluate", role=Role.EVALUATE, does=does, artifact=artifact, build=build)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Computes the evaluation: checks the sets, measures all models on sets and tasks, and publishes the results."""

    artifact: Artifact
    references: Mapping[str, str]
    pretrained: str | None
    settings: EvaluationConfig
    sets: Mapping[str, EvaluationSet]
    tasks: Tasks
    of_tasks: Mapping[str, Artifact]
    limits: Limits

    def __call__(self, display: Display) -> Artifact:
        # imports torch and open_clip, which a plan does not need
        from orchestrator.evaluation.embed import measure
        from orchestrator.evaluation.models import Models
        from orchestrator.evaluation.on_ray import OnRay

        check_sets(self.sets, self.limits, display)
        started = time.monotonic()
        models = Models(references=self.references, pretrained=self.pretrained)
        # a config that cannot be read ends the command here, before a model is loaded
        models.decoder()
        embedder = OnRay(models, self.settings)
        with display.stage("evaluate", unit="images") as progress:
            totals = measure(embedder, self.sets, progress)
            if self.of_tasks:
                tables = measure_tasks(
                    embedder, self.tasks, self.of_tasks, self.settings, display, progress, self.limits
                )
                totals = {name: numbers | {"tasks": tables[name]} for name, numbers in totals.items()}
        self.artifact.publish(totals=totals, parts=[], seconds=time.monotonic() - started)
        return self.artifact
