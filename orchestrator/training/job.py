"""A training phase as its workers get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.clip.recipe import Recipe
from orchestrator.clip.schedule import learning_rate
from orchestrator.config import Config, PhaseConfig, TrainingConfig
from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.evaluation.sets import EvaluationSet
from orchestrator.source import Part, Source
from orchestrator.training.decoding import Decoding
from orchestrator.training.reader import Feed
from orchestrator.training.sample_order import Stream

if TYPE_CHECKING:
    from orchestrator.clip.model import Clip


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one phase is: its settings, its pairs in their order, the weights it starts from, where its results go.

    `sets` are what it is evaluated on while it is trained; `ticker` is the actor by which workers and driver tell each
    other things."""

    config: Config
    phase: PhaseConfig
    name: str
    artifact: Artifact
    start_uri: str | None
    source: Source
    parts: tuple[Part, ...]
    catalog: Catalog
    keep: KeepList
    stream: Stream
    sets: Mapping[str, EvaluationSet]
    ticker: Any

    @property
    def recipe(self) -> Recipe:
        """How the model is trained."""
        return recipe_of(self.config.training, self.phase)

    @property
    def num_warmup_steps(self) -> int:
        """Warm-up in steps, from steps or from (parts of) epochs."""
        return self.phase.warmup_steps or self._steps(self.phase.warmup_epochs)

    @property
    def num_cooldown_steps(self) -> int:
        """Steps of the final cooldown."""
        return self._steps(self.phase.cooldown_epochs)

    def lr(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        phase = self.phase
        return learning_rate(
            step,
            schedule=phase.lr_schedule,
            peak_lr=phase.lr,
            num_warmup_steps=self.num_warmup_steps,
            num_steps=self.stream.num_steps,
            num_cooldown_steps=self.num_cooldown_steps,
            cooldown_power=phase.cooldown_power,
            cooldown_end_lr=phase.cooldown_end_lr,
            num_restarts=phase.lr_restarts,
        )

    def feed(self, clip: Clip) -> Feed:
        """What reading the stream for a model takes."""
        training = self.config.training
        return Feed(
            source=self.source,
            parts=self.parts,
            catalog=self.catalog,
            keep=self.keep,
            stream=self.stream,
            decoding=Decoding(
                image_size=clip.image_size,
                augmentation=training.augmentation,
                seed=self.stream.seed,
                decode_in=training.decode_in,
                draft_decoding=training.draft_decoding,
                max_image_pixels=training.max_image_pixels,
            ),
        )

    def seen(self, done: int) -> int:
        """Samples that so many steps have seen."""
        return min(done * self.stream.global_batch_size, self.stream.num_samples)

    def _steps(self, epochs: float) -> int:
        return round(epochs * self.stream.num_pairs / self.stream.global_batch_size)


def recipe_of(training: TrainingConfig, phase: PhaseConfig) -> Recipe:
    """How a phase trains its model; the recipe's fields have the names of the settings."""
    shared = training.model_dump(include=set(Recipe.__dataclass_fields__))
    return Recipe(**shared | {"patch_dropout": phase.patch_dropout})
