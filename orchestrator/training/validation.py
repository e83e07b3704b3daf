"""The validation sets during training: tasks read and decode, every rank embeds a share on its device; and the best
model.

The model with the best validation metric so far is kept next to the checkpoints."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from orchestrator.clip import model
from orchestrator.clip.model import Clip
from orchestrator.config import Config
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json
from orchestrator.evaluation.embed import InProcess, Ranks, measure
from orchestrator.evaluation.on_ray import split_batches
from orchestrator.evaluation.sets import EvaluationSet, named_results
from orchestrator.storage import files
from orchestrator.training.agreement import from_first, gather

logger = logging.getLogger(__name__)
MODEL = "model"


def evaluate(
    clip: Clip, sets: Mapping[str, EvaluationSet], config: Config, *, rank: int = 0, num_ranks: int = 1
) -> dict[str, float]:
    """Return every metric of a model on the configured sets, which the driver has opened; values in [0, 1].

    Every rank calls it with the same model and gets the same values, which do not depend on the number of ranks."""
    ranks = Ranks(rank, num_ranks, partial(gather, num_ranks=num_ranks))
    read = partial(split_batches, ranks=ranks, from_first=partial(from_first, num_ranks=num_ranks))
    embedder = InProcess({MODEL: clip}, config.evaluation, read=read, ranks=ranks)
    return named_results(config.evaluation, measure(embedder, sets)[MODEL])


class BestModel:
    """The model folder with the highest value of a metric so far, and that value."""

    def __init__(self, artifact: Artifact, metric: str):
        self.artifact, self.metric, self.note = artifact, metric, artifact.path("best.json")
        self.value = read_json(self.note)["value"] if files.exists(self.note) else float("-inf")

    def offer(self, clip: Clip, measured: dict[str, float], step: int) -> None:
        """Keep the model if it is better than the best so far; of equal models the first stays."""
        if measured[self.metric] <= self.value:
            return
        self.value = measured[self.metric]
        save_model(clip, self.artifact.path("best"))
        files.write_json(self.note, {"step": step, "metric": self.metric, "value": self.value})
        logger.info("best model so far after step %d: %s = %.4f", step, self.metric, self.value)


def save_model(clip: Clip, uri: str) -> None:
    """Write a model as a folder that open_clip loads, at any URI."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(clip, Path(folder))
        files.copy(folder, uri)
