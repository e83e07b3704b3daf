"""How a model is trained, independent of the data: the settings of a `TrainStep`.

This module does not import torch, so the configuration can use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
LossName = Literal["clip", "siglip"]
Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of training; the defaults are open_clip's.

    `local_loss`: each rank computes only the rows of its own slots (SigLIP always does). `loss_rows`: the rows of the
    logits that it computes at a time (None: all). `accumulation`: the number of chunks in which a rank computes its
    slots. Both save memory; loss and gradients stay those of the whole batch. `tf32`: matrix products of the towers in
    fp32 may use TensorFloat32 on GPUs; those of the loss never do.
    `trim_captions`: text towers that allow it do not compute padding. `patch_dropout`: the share of dropped patches
    (FLIP). `lock_text_freeze_layer_norm` is for Hugging Face text towers; open_clip's always lock their layer norms."""

    seed: int = 0
    precision: Precision = "fp32"
    tf32: bool = True
    loss: LossName = "clip"
    local_loss: bool = False
    loss_rows: int | None = None
    accumulation: int = 1
    grad_clip_norm: float | None = None
    max_logit_scale: float = 100.0
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    grad_checkpointing: bool = False
    compile: bool = False
    trim_captions: bool = True
    patch_dropout: float = 0.0
    ema_decay: float | None = None
    parallel: Strategy = "ddp"
    lock_image: bool = False
    lock_image_unlocked_groups: int = 0
    lock_image_freeze_bn_stats: bool = False
    lock_text: bool = False
    lock_text_unlocked_layers: int = 0
    lock_text_freeze_layer_norm: bool = False
