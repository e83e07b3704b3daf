"""Cosine decay to zero after a linear warm-up: with w warm-up steps of n in all,
lr(s) = peak * (s + 1) / w for s < w, else peak * (1 + cos(pi * (s - w) / (n - w))) / 2 (open_clip_train.scheduler)."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, *, peak_lr: float, num_warmup_steps: int, num_steps: int) -> float:
    """The learning rate of optimiser step `step`, counted from 0."""
    if step < num_warmup_steps:
        return peak_lr * (step + 1) / num_warmup_steps
    # the operations in open_clip's order, so that the last bit is the same too
    angle = math.pi * (step - num_warmup_steps) / (num_steps - num_warmup_steps)
    return 0.5 * (1 + math.cos(angle)) * peak_lr
