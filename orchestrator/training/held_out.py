"""The evaluation sets during training: rank 0 embeds them on its own device, reading tasks decode; and the best model
so far."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from orchestrator import store
from orchestrator.artifacts import Artifact
from orchestrator.clip import model
from orchestrator.clip.model import Clip
from orchestrator.config import Config
from orchestrator.errors import UserError
from orchestrator.evaluation.embed import LoadedModels, retrieval, zero_shot
from orchestrator.evaluation.sets import EvaluationSet

ZERO_SHOT = ("top1", "top5")
RETRIEVAL = tuple(f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))
MODEL = "model"


def metrics(config: Config) -> list[str]:
    """The names of what is measured, `SET/METRIC`."""
    evaluation = config.evaluation
    names = [f"zero_shot/{name}" for name in ZERO_SHOT] if evaluation.zero_shot.uri else []
    return names + ([f"retrieval/{name}" for name in RETRIEVAL] if evaluation.retrieval.uri else [])


def check(config: Config) -> None:
    """Errors: `UserError` when there is nothing to evaluate on, or the best model's metric is none of those."""
    training, known = config.training, metrics(config)
    if training.evaluate_every_steps is None:
        return
    if not known:
        raise UserError(
            "training.evaluate_every_steps is set, but there is no set: give evaluation.retrieval.uri= or "
            "evaluation.zero_shot.uri="
        )
    if training.keep_model == "best" and training.best_metric not in known:
        raise UserError(f"training.best_metric={training.best_metric}: expected one of {', '.join(known)}")


def evaluate(clip: Clip, sets: Mapping[str, EvaluationSet], config: Config) -> dict[str, float]:
    """Every metric of a model on the sets that the config names, opened by the driver; in [0, 1]."""
    models = LoadedModels({MODEL: clip})
    measured = {}
    if "zero_shot" in sets:
        measured["zero_shot"] = zero_shot(models, sets["zero_shot"], config.evaluation)[MODEL]
    if "retrieval" in sets:
        measured["retrieval"] = retrieval(models, sets["retrieval"], config.evaluation)[MODEL]
    return {name: measured[name.split("/")[0]][name.split("/")[1]] for name in metrics(config)}


class Best:
    """The model folder with the highest value of a metric so far, and what that is."""

    def __init__(self, artifact: Artifact, metric: str):
        self.artifact, self.metric, self.note = artifact, metric, artifact.path("best.json")
        self.value = store.read_json(self.note)["value"] if store.exists(self.note) else float("-inf")

    def offer(self, clip: Clip, measured: dict[str, float], step: int) -> None:
        """Keeps the model if it is better than the one before; of equals the first stays."""
        if measured[self.metric] <= self.value:
            return
        self.value = measured[self.metric]
        save_model(clip, self.artifact.path("best"))
        store.write_json(self.note, {"step": step, "metric": self.metric, "value": self.value})


def save_model(clip: Clip, uri: str) -> None:
    """A model as the folder that open_clip loads, at any place."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(clip, Path(folder))
        store.copy(folder, uri)
