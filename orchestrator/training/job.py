"""The job of a training phase: what each of its workers gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.clip.recipe import Recipe
from orchestrator.clip.schedule import learning_rate
from orchestrator.clip.tokens import captions_of
from orchestrator.config import Config, PhaseConfig, TrainingConfig
from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.evaluation.sets import EvaluationSet
from orchestrator.source import Part, Source
from orchestrator.training.decoding import Decoding
from orchestrator.training.reader import ReaderInputs
from orchestrator.training.sample_order import SampleOrder

if TYPE_CHECKING:
    from orchestrator.clip.model import Clip


@dataclass(frozen=True, kw_only=True)
class Job:
    """One phase: its settings, its pairs in their order, the weights to start from, and where results are written.

    `start_uri`: the model folder of the phase before, None for the first phase. `sets`: what the model is evaluated on
    during training. `signals`: the `PhaseSignals` actor between workers and driver."""

    config: Config
    phase: PhaseConfig
    name: str
    artifact: Artifact
    start_uri: str | None
    source: Source
    parts: tuple[Part, ...]
    catalog: Catalog
    keep: KeepList
    order: SampleOrder
    sets: Mapping[str, EvaluationSet]
    signals: Any

    @property
    def recipe(self) -> Recipe:
        """How the model is trained."""
        return recipe_of(self.config.training, self.phase)

    @property
    def num_warmup_steps(self) -> int:
        """Steps of warm-up, configured as steps or as epochs (also a fraction)."""
        return self.phase.warmup_steps or self._steps(self.phase.warmup_epochs)

    @property
    def num_cooldown_steps(self) -> int:
        """Steps of the final cooldown."""
        return self._steps(self.phase.cooldown_epochs)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        phase = self.phase
        return learning_rate(
            step,
            schedule=phase.lr_schedule,
            peak_lr=phase.lr,
            num_warmup_steps=self.num_warmup_steps,
            num_steps=self.order.num_steps,
            num_cooldown_steps=self.num_cooldown_steps,
            cooldown_power=phase.cooldown_power,
            cooldown_end_lr=phase.cooldown_end_lr,
            num_restarts=phase.lr_restarts,
        )

    def reader_inputs(self, clip: Clip) -> ReaderInputs:
        """Return what reading the samples for a model needs."""
        training = self.config.training
        return ReaderInputs(
            source=self.source,
            parts=self.parts,
            catalog=self.catalog,
            keep=self.keep,
            order=self.order,
            decoding=Decoding(
                image_size=clip.image_size,
                augmentation=training.augmentation,
                seed=self.order.seed,
                decode_in=training.decode_in,
                draft_decoding=training.draft_decoding,
                max_image_pixels=training.max_image_pixels,
                captions=captions_of(clip.tokenizer),
                resize_with=training.resize_with,
            ),
        )

    def seen(self, done: int) -> int:
        """Return the samples seen after `done` steps."""
        return min(done * self.order.global_batch_size, self.order.num_samples)

    def _steps(self, epochs: float) -> int:
        return round(epochs * self.order.num_pairs / self.order.global_batch_size)


def recipe_of(training: TrainingConfig, phase: PhaseConfig) -> Recipe:
    """Return how a phase trains its model; the fields of `Recipe` have the names of the settings.

    What is left to choose (`auto`, null) has the value that computes everything at once."""
    shared = training.model_dump(include=set(Recipe.__dataclass_fields__))
    chosen = {
        "patch_dropout": phase.patch_dropout,
        "local_loss": bool(training.local_loss),
        "loss_rows": None if training.loss_rows == "auto" else training.loss_rows,
        "accumulation": 1 if training.accumulation == "auto" else training.accumulation,
    }
    return Recipe(**shared | chosen)
