"""The model, and the two phases that train it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.section import MAX_IMAGE_PIXELS, Fraction, Positive, Section, Share


class ModelConfig(Section):
    """An open_clip model by name, or a model configuration (timm towers allowed)."""

    name: str | None = "ViT-B-32"
    """An open_clip model name. Null: `config` describes the model."""
    config: dict[str, Any] | None = None
    """A model configuration in open_clip's form. Null: `name` chooses the model."""
    pretrained: str | None = None
    """Initial weights: an open_clip tag or a checkpoint file. Null: random weights, a function of the seed."""
    image_size: Positive | None = None
    """Side of the square input image. Null: the model's own size. Unit: pixels."""
    context_length: Positive | None = None
    """Text length. Null: the model's own length, 77 for most. Unit: tokens."""

    @model_validator(mode="after")
    def _check_name_or_config(self) -> ModelConfig:
        if (self.name is None) == (self.config is None):
            raise ValueError("model: give either model.name or model.config and set the other to null")
        return self


class AugmentationConfig(Section):
    """The random resized crop of open_clip's training. `scale` and `ratio` of [1, 1] make it a centre crop."""

    scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    """Range of the crop's area. Unit: fraction of the image."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Range of the crop's aspect ratio. Unit: width / height."""
    horizontal_flip: bool = False
    """Flip half of the images, drawn at random."""


class PhaseConfig(Section):
    """One training phase: its length and its learning rate."""

    epochs: Positive = 32
    """Passes over the pairs of the phase. Unit: epochs."""
    samples: Positive | None = None
    """Samples seen in total. Overrides `epochs`, and need not be whole epochs. Null: `epochs` decides. Unit:
    samples."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate. Unit: none."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up of the learning rate. Give this or `warmup_epochs`. Unit: steps."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Linear warm-up of the learning rate. Give this or `warmup_steps`. Unit: epochs."""
    lr_schedule: Literal["cosine", "constant", "constant-cooldown"] = "cosine"
    """The learning rate after the warm-up, as in open_clip: down to 0 along a cosine; constant; or constant, then down
    to `cooldown_end_lr` in the last `cooldown_epochs`."""
    lr_restarts: Annotated[int, Field(ge=0)] = 0
    """Warm restarts of the cosine schedule, with equal periods. Unit: restarts."""
    cooldown_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Length of the cool-down of `constant-cooldown`, which needs it. Unit: epochs."""
    cooldown_power: Annotated[float, Field(gt=0)] = 1.0
    """Shape of the cool-down: 1 is linear. Unit: none."""
    cooldown_end_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of the cool-down. Unit: none."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the patches that are left out of each image (FLIP). Unit: fraction of the patches."""

    @model_validator(mode="after")
    def _check_schedule(self) -> PhaseConfig:
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
    """The phase on every valid pair of the source. It starts from the pre-trained weights with a new optimiser."""

    enabled: bool = True
    """Run the fine-tune phase."""
    after: str | None = None
    """Fine-tune on the pairs that this selection step keeps, such as `semdedup`. Null: on every valid pair."""
    epochs: Positive = 1
    """Passes over the pairs of the phase. Unit: epochs."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate. Unit: none."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.1
    """Linear warm-up of the learning rate. Give this or `warmup_steps`. Unit: epochs."""


# a setting that has no effect unless the other one is on
REQUIRES = {
    "lock_image_unlocked_groups": "lock_image",
    "lock_image_freeze_bn_stats": "lock_image",
    "lock_text_unlocked_layers": "lock_text",
    "lock_text_freeze_layer_norm": "lock_text",
}


class TrainingConfig(PhaseConfig):
    """Pre-training, and what both phases share: batch, loss, optimiser, precision, sample order and checkpoints.

    The settings of a training step have the names of `clip.recipe.Recipe`."""

    global_batch_size: Positive = 32_768
    """Pairs in a global batch, over all workers. A multiple of `lanes`. Unit: pairs."""
    loss: Literal["clip", "siglip"] = "clip"
    """CLIP's softmax loss or SigLIP's sigmoid loss, over the pairs of the global batch."""
    local_loss: bool | None = None
    """Each worker computes its own rows of the logits: the same gradients with less memory. Null: with more than one
    worker on GPUs. For `loss=clip`; SigLIP is always local."""
    loss_rows: Positive | Literal["auto"] = "auto"
    """Compute this many rows of a worker's logits at a time, and again in the backward pass, to save memory. `auto`:
    all rows, unless memory is short. Unit: rows."""
    accumulation: Positive | Literal["auto"] = "auto"
    """Compute a worker's share of a batch in this many chunks, to save memory. Loss and gradients stay those of the
    whole batch. `auto`: as few as the memory of the device allows, with gradient checkpointing if need be; 1 for towers
    with batch norms, for which chunks change the result. Unit: chunks."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """AdamW's weight decay; not applied to gains, biases and the logit scale. Unit: none."""
    beta1: Share = 0.9
    """AdamW's first moment decay. Unit: none."""
    beta2: Share = 0.98
    """AdamW's second moment decay. Unit: none."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW's epsilon. Unit: none."""
    grad_clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Clip gradients to this norm. Null: no clipping. Unit: none."""
    max_logit_scale: Annotated[float, Field(ge=1)] = 100.0
    """Upper bound of the learned logit scale. Unit: none."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, for example 0.9999; the average is then the model of the phase. Null:
    no average. Unit: none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast precision. `auto`: bf16 if the device has it, otherwise fp16 on GPUs and fp32 on CPUs."""
    tf32: bool = True
    """With fp32 on GPUs, the towers use TensorFloat32, which is several times as fast. The loss never does."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    compile: bool = False
    """Use `torch.compile`. On CPUs it needs a C++ compiler."""
    trim_captions: bool = True
    """Cut the token matrix to the longest caption of the batch, for text towers that give the same features then."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` holds the model on every GPU. `fsdp` (FSDP2) shards it, for towers that do not fit on one GPU."""
    lock_image: bool = False
    """Do not train the image tower (LiT)."""
    lock_image_unlocked_groups: Annotated[int, Field(ge=0)] = 0
    """Still train this many of the last layer groups of a locked image tower. Unit: layer groups."""
    lock_image_freeze_bn_stats: bool = False
    """Freeze the batch-norm statistics of a locked image tower."""
    lock_text: bool = False
    """Do not train the text tower."""
    lock_text_unlocked_layers: Annotated[int, Field(ge=0)] = 0
    """Still train this many of the last layers of a locked text tower. Unit: layers."""
    lock_text_freeze_layer_norm: bool = False
    """Freeze the layer norms of a locked Hugging Face text tower. Locked open_clip towers always do."""
    seed: int = 0
    """Seed of the initial weights, the sample order, the augmentation and dropout. Unit: none."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """The random resized crop."""
    decode_in: Literal["tasks", "workers"] = "tasks"
    """`tasks` decodes images on free CPUs. `workers` sends JPEGs to the training workers, where nvJPEG decodes them on
    the GPU."""
    resize_with: Literal["pillow", "torch"] = "pillow"
    """What resizes the images of `decode_in=tasks`. `torch` needs a fraction of the time. A few pixels in a hundred
    differ by 1 of 255, more at the edges of a crop. Each decoding process loads torch."""
    draft_decoding: bool = True
    """Decode JPEGs that are much larger than needed at a fraction of their size."""
    max_image_pixels: Positive = MAX_IMAGE_PIXELS
    """A larger image counts as a bad pair and is not decoded. Unit: pixels, width x height."""
    max_bad_pairs: Share = 0.05
    """The run fails if a larger share of the samples is unreadable. Each one is counted and masked. Unit: fraction of
    the samples."""
    lanes: Positive = 64
    """Lanes of the sample order. A multiple of `num_workers`, and a divisor of `global_batch_size`. Unit: lanes."""
    window: Positive = 1024
    """Pairs of a lane that are shuffled together. A larger window mixes better and needs more memory. Unit: pairs per
    lane."""
    checkpoint_every_steps: Positive = 1000
    """Write a checkpoint this often. Unit: steps."""
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = 30.0
    """Write a checkpoint at least this often. Null: by steps alone. Unit: minutes."""
    keep_checkpoints: Positive = 2
    """Checkpoints to keep until the phase is finished. Unit: checkpoints."""
    evaluate_every_steps: Positive | None = None
    """Evaluate on the sets of `evaluation` during training. Null: only at the end of a phase. Unit: steps."""
    keep_model: Literal["last", "best"] = "last"
    """The model of the phase: the last one, or the one with the highest `best_metric`. `best` needs
    `evaluate_every_steps`."""
    best_metric: str = "retrieval/text_to_image_recall_at_1"
    """The metric of `keep_model=best`, as SET/METRIC."""
    record_batches: bool = False
    """Write the keys of every global batch as Parquet beside the training curve."""
    log_every_steps: Positive = 10
    """Log the loss and the rate this often. Unit: steps."""
    num_workers: Positive | None = None
    """Training workers. Null: one for each GPU of the cluster, or 2 on CPUs. Unit: workers."""
    cpus_per_worker: Positive | None = None
    """Logical CPUs that a training worker reserves, and the threads of its CPU work on a GPU. Null: one on CPUs; on
    GPUs a quarter of its share of its node's CPUs, at most 4. Unit: CPUs."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of the training workers after failures. Unit: restarts."""

    @model_validator(mode="after")
    def _check_dependent_settings(self) -> TrainingConfig:
        for setting, needs in REQUIRES.items():
            if getattr(self, setting) and not getattr(self, needs):
                raise ValueError(f"training.{setting} needs training.{needs}=true")
        if self.local_loss and self.loss == "siglip":
            raise ValueError("training.local_loss=true needs training.loss=clip: the loss of siglip is always local")
        return self

    @model_validator(mode="after")
    def _check_best_model(self) -> TrainingConfig:
        if self.keep_model == "best" and self.evaluate_every_steps is None:
            raise ValueError("training.keep_model=best needs training.evaluate_every_steps")
        return self

    @model_validator(mode="after")
    def _check_lanes(self) -> TrainingConfig:
        if self.global_batch_size % self.lanes:
            raise ValueError(
                f"training.global_batch_size={self.global_batch_size} must be a multiple of "
                f"training.lanes={self.lanes}: a global batch takes the same number of pairs from every lane"
            )
        if self.num_workers is not None and self.lanes % self.num_workers:
            raise ValueError(
                f"training.lanes={self.lanes} must be a multiple of training.num_workers={self.num_workers}: every "
                f"worker owns the same number of lanes; {lanes_hint(self, self.num_workers)}"
            )
        return self


def lanes_hint(training: TrainingConfig, workers: int) -> str:
    """Return settings for a number of workers that does not divide the lanes, such as 6, 12 or 24 GPUs."""
    lanes = -(-training.lanes // workers) * workers
    batch = max(1, round(training.global_batch_size / lanes)) * lanes
    size = "" if batch == training.global_batch_size else f" training.global_batch_size={batch}"
    return f"for example training.lanes={lanes}{size} (another number of lanes is another order of the samples)"
