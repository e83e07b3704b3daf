"""Evaluation as a stage: zero-shot classification and image-text retrieval of every model of a run, in one pass a
set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from orchestrator import store
from orchestrator.artifacts import Artifact, fingerprint
from orchestrator.config import Config, EvaluationConfig
from orchestrator.errors import UserError
from orchestrator.evaluation.embed import Models, retrieval, zero_shot
from orchestrator.evaluation.sets import EvaluationSet, open_set
from orchestrator.progress import Display
from orchestrator.stage import Stage

VERSION = 1
CONFIG_FILE = "open_clip_config.json"


def models_stage(config: Config, trained: Mapping[str, Artifact]) -> list[Stage]:
    """The stage that evaluates a run's phases; none where the config names no evaluation set."""
    if config.evaluation.zero_shot.uri is None and config.evaluation.retrieval.uri is None:
        return []
    models = Models(references={name: artifact.path("model") for name, artifact in trained.items()})
    made_from = {name: artifact.fingerprint for name, artifact in trained.items()}
    return [_stage(config, models, made_from)]


def checkpoint_stage(config: Config) -> Stage:
    """The stage that evaluates one checkpoint: a model folder of ours, or any open_clip reference.

    Errors: `UserError` when there is no checkpoint, or nothing to evaluate it on."""
    if config.checkpoint is None:
        raise UserError("evaluate needs checkpoint= (a model folder, or an open_clip name with model.pretrained=)")
    if config.evaluation.zero_shot.uri is None and config.evaluation.retrieval.uri is None:
        raise UserError(
            "evaluate needs evaluation.zero_shot.uri= or evaluation.retrieval.uri= (a tar, or a folder of tars)"
        )
    reference, pretrained = config.checkpoint, config.model.pretrained
    if store.exists(store.join(reference, CONFIG_FILE)):
        reference = store.absolute(reference)
    elif reference.endswith((".pt", ".bin", ".safetensors")) and store.exists(reference):
        if config.model.name is None:
            raise UserError(f"{reference} holds weights only: name their architecture, model.name=ViT-B-32 say")
        reference, pretrained = config.model.name, store.absolute(reference)
    models = Models(references={"checkpoint": reference}, pretrained=pretrained)
    return _stage(
        config, models, {"reference": reference, "pretrained": pretrained, "files": _files(reference, pretrained)}
    )


def _files(reference: str, pretrained: str | None) -> dict[str, Any]:
    # another file at the same place is another model
    found: dict[str, Any] = {}
    for place in filter(None, (reference, pretrained)):
        if "://" in place or store.is_path(place):
            fs, path = store.filesystem(place)
            details = fs.find(path, detail=True) if fs.exists(path) else {}
            found |= {
                name: [info["size"], str(info.get("ETag") or info.get("mtime"))] for name, info in details.items()
            }
    return found


def evaluation_sets(settings: EvaluationConfig) -> dict[str, EvaluationSet]:
    """The sets that the config names: `zero_shot`, `retrieval`, both or none."""
    return {
        name: open_set(node.uri, needs_classes=name == "zero_shot")
        for name, node in (("zero_shot", settings.zero_shot), ("retrieval", settings.retrieval))
        if node.uri
    }


def measured_on(settings: EvaluationConfig, sets: Mapping[str, EvaluationSet]) -> dict[str, Any]:
    """What makes a model's results what they are, beside the model: the sets and the prompt templates."""
    return {
        "templates": settings.zero_shot.templates and list(settings.zero_shot.templates),
        "sets": {name: one.identity for name, one in sets.items()},
    }


def _stage(config: Config, models: Models, made_from: Mapping[str, Any]) -> Stage:
    settings = config.evaluation
    sets = evaluation_sets(settings)
    artifact = Artifact.of(
        config.store,
        "evaluation",
        version=VERSION,
        models=fingerprint(dict(made_from)),
        **measured_on(settings, sets),
    )

    def build(display: Display) -> Artifact:
        return _evaluate(settings, models, sets, artifact, display)

    return Stage(
        name="evaluate",
        does=f"{' and '.join(sets).replace('_', '-')} of {', '.join(models.references)}",
        artifact=artifact,
        build=build,
    )


def _evaluate(
    settings: EvaluationConfig, models: Models, sets: Mapping[str, EvaluationSet], artifact: Artifact, display: Display
) -> Artifact:
    started = time.monotonic()
    totals: dict[str, dict[str, Any]] = {name: {} for name in models.references}
    with display.stage("evaluate", unit="images") as progress:
        if "zero_shot" in sets:
            for name, numbers in zero_shot(models, sets["zero_shot"], settings, progress).items():
                totals[name]["zero_shot"] = numbers
        if "retrieval" in sets:
            for name, numbers in retrieval(models, sets["retrieval"], settings, progress).items():
                totals[name]["retrieval"] = numbers
    artifact.publish(totals=totals, parts=[], seconds=time.monotonic() - started)
    return artifact
