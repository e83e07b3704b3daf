"""The evaluation sets during training: rank 0 embeds them on its own device, reading tasks decode; and the best model
so far."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from orchestrator.clip import model
from orchestrator.clip.model import Clip
from orchestrator.config import Config
from orchestrator.engine.artifact import Artifact
from orchestrator.evaluation.embed import LoadedModels, measure
from orchestrator.evaluation.sets import EvaluationSet, named_results
from orchestrator.storage import files

MODEL = "model"


def evaluate(clip: Clip, sets: Mapping[str, EvaluationSet], config: Config) -> dict[str, float]:
    """Every metric of a model on the sets that the config names, opened by the driver; in [0, 1]."""
    return named_results(config.evaluation, measure(LoadedModels({MODEL: clip}), sets, config.evaluation)[MODEL])


class Best:
    """The model folder with the highest value of a metric so far, and what that is."""

    def __init__(self, artifact: Artifact, metric: str):
        self.artifact, self.metric, self.note = artifact, metric, artifact.path("best.json")
        self.value = files.read_json(self.note)["value"] if files.exists(self.note) else float("-inf")

    def offer(self, clip: Clip, measured: dict[str, float], step: int) -> None:
        """Keeps the model if it is better than the one before; of equals the first stays."""
        if measured[self.metric] <= self.value:
            return
        self.value = measured[self.metric]
        save_model(clip, self.artifact.path("best"))
        files.write_json(self.note, {"step": step, "metric": self.metric, "value": self.value})


def save_model(clip: Clip, uri: str) -> None:
    """A model as the folder that open_clip loads, at any place."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(clip, Path(folder))
        files.copy(folder, uri)
