"""The model, and the two phases that train it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.section import MAX_IMAGE_PIXELS, Fraction, Positive, Section, Share


class ModelConfig(Section):
    """An open_clip model by name, or a configuration of one's own (timm towers allowed)."""

    name: str | None = "ViT-B-32"
    config: dict[str, Any] | None = None
    pretrained: str | None = None
    image_size: Positive | None = None
    context_length: Positive | None = None

    @model_validator(mode="after")
    def _one_of_name_and_config(self) -> ModelConfig:
        if (self.name is None) == (self.config is None):
            raise ValueError("model: give either model.name or model.config, and set the other to null")
        return self


class AugmentationConfig(Section):
    """Random resized crop as open_clip trains with; `scale` [1, 1] and `ratio` [1, 1] make it a centre crop."""

    scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: bool = False


class PhaseConfig(Section):
    """One training phase: how long (`samples` seen, where it is set, and not whole `epochs`), how fast.

    `lr_schedule` names open_clip's schedules, and cosine with `lr_restarts` warm restarts."""

    epochs: Positive = 32
    samples: Positive | None = None
    lr: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    lr_schedule: Literal["cosine", "constant", "constant-cooldown"] = "cosine"
    lr_restarts: Annotated[int, Field(ge=0)] = 0
    cooldown_epochs: Annotated[float, Field(ge=0)] = 0.0
    cooldown_power: Annotated[float, Field(gt=0)] = 1.0
    cooldown_end_lr: Annotated[float, Field(ge=0)] = 0.0
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _settings_that_go_together(self) -> PhaseConfig:
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("give either warmup_steps or warmup_epochs, not both")
        if self.lr_restarts and self.lr_schedule != "cosine":
            raise ValueError(f"lr_restarts={self.lr_restarts} needs lr_schedule=cosine, got {self.lr_schedule}")
        if (self.lr_schedule == "constant-cooldown") != bool(self.cooldown_epochs):
            raise ValueError(
                f"lr_schedule=constant-cooldown and cooldown_epochs above 0 go together, "
                f"got {self.lr_schedule} and {self.cooldown_epochs:g}"
            )
        return self


class FinetuneConfig(PhaseConfig):
    """The phase on every valid pair of the source (with `after`: of what that selection step left), from the
    pre-trained weights with a new optimiser."""

    enabled: bool = True
    after: str | None = None
    epochs: Positive = 1
    lr: Annotated[float, Field(gt=0)] = 1e-5
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.1


# settings that do nothing unless another is on
VAIN_WITHOUT = {
    "lock_image_unlocked_groups": "lock_image",
    "lock_image_freeze_bn_stats": "lock_image",
    "lock_text_unlocked_layers": "lock_text",
    "lock_text_freeze_layer_norm": "lock_text",
}


class TrainingConfig(PhaseConfig):
    """Pre-training, and what both phases share: batch, loss, optimiser, precision, stream and checkpoints.

    What the learner is made of has the names of `clip.recipe.Recipe`, which tells what each does."""

    global_batch_size: Positive = 32_768
    loss: Literal["clip", "siglip"] = "clip"
    local_loss: bool = False
    accumulation: Positive = 1
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    beta1: Share = 0.9
    beta2: Share = 0.98
    eps: Annotated[float, Field(gt=0)] = 1e-6
    grad_clip_norm: Annotated[float, Field(gt=0)] | None = None
    max_logit_scale: Annotated[float, Field(ge=1)] = 100.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    grad_checkpointing: bool = False
    compile: bool = False
    trim_captions: bool = True
    parallel: Literal["ddp", "fsdp"] = "ddp"
    lock_image: bool = False
    lock_image_unlocked_groups: Annotated[int, Field(ge=0)] = 0
    lock_image_freeze_bn_stats: bool = False
    lock_text: bool = False
    lock_text_unlocked_layers: Annotated[int, Field(ge=0)] = 0
    lock_text_freeze_layer_norm: bool = False
    seed: int = 0
    augmentation: AugmentationConfig = AugmentationConfig()
    decode_in: Literal["tasks", "workers"] = "tasks"
    draft_decoding: bool = True
    max_image_pixels: Positive = MAX_IMAGE_PIXELS
    max_bad_pairs: Share = 0.05
    lanes: Positive = 64
    window: Positive = 1024
    checkpoint_every_steps: Positive = 1000
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = 30.0
    keep_checkpoints: Positive = 2
    evaluate_every_steps: Positive | None = None
    keep_model: Literal["last", "best"] = "last"
    best_metric: str = "retrieval/text_to_image_recall_at_1"
    record_batches: bool = False
    log_every_steps: Positive = 10
    num_workers: Positive | None = None
    cpus_per_worker: Positive = 1
    max_failures: Annotated[int, Field(ge=0)] = 3

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> TrainingConfig:
        for setting, needs in VAIN_WITHOUT.items():
            if getattr(self, setting) and not getattr(self, needs):
                raise ValueError(f"training.{setting} needs training.{needs}=true")
        if self.local_loss and self.loss == "siglip":
            raise ValueError("training.local_loss=true is for training.loss=clip: siglip's loss always is local")
        return self

    @model_validator(mode="after")
    def _best_is_looked_for(self) -> TrainingConfig:
        if self.keep_model == "best" and self.evaluate_every_steps is None:
            raise ValueError("training.keep_model=best needs training.evaluate_every_steps: how often to look for it")
        return self

    @model_validator(mode="after")
    def _lanes_divide_the_batch(self) -> TrainingConfig:
        if self.global_batch_size % self.lanes:
            raise ValueError(
                f"training.global_batch_size={self.global_batch_size} must be a multiple of "
                f"training.lanes={self.lanes}: every global batch takes as many pairs from each lane"
            )
        if self.num_workers is not None and self.lanes % self.num_workers:
            raise ValueError(
                f"training.lanes={self.lanes} must be a multiple of training.num_workers="
                f"{self.num_workers}: every worker owns as many lanes"
            )
        return self
