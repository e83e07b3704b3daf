"""The learning rate as a function of the step: a linear warm-up, then one of open_clip_train's schedules.

The values equal open_clip_train's to the last bit. With n steps in all, w of warm-up, c of cool-down, and r restarts,
lr(s) = peak * (s + 1) / w for s < w. After the warm-up:

- cosine: peak * (1 + cos(pi * t)) / 2, where t runs from 0 to 1 in the n - w steps, r + 1 times in a row (SGDR's warm
  restarts, Loshchilov and Hutter 2017, with equal periods);
- constant: peak;
- constant-cooldown: peak, then end + (peak - end) * (1 - (s - n + c) / c)^power in the last c steps."""

from __future__ import annotations

import math
from typing import Literal, get_args

ScheduleName = Literal["cosine", "constant", "constant-cooldown"]


def learning_rate(
    step: int,
    *,
    schedule: str,
    peak_lr: float,
    num_warmup_steps: int,
    num_steps: int,
    num_cooldown_steps: int = 0,
    cooldown_power: float = 1.0,
    cooldown_end_lr: float = 0.0,
    num_restarts: int = 0,
) -> float:
    """Return the learning rate of optimiser step `step`, counted from 0.

    Errors: `ValueError` for an unknown schedule."""
    if step < num_warmup_steps:
        return peak_lr * (step + 1) / num_warmup_steps
    if schedule == "cosine":
        return _cosine(step - num_warmup_steps, num_steps - num_warmup_steps, peak_lr, num_restarts)
    if schedule == "constant":
        return peak_lr
    if schedule == "constant-cooldown":
        into_cooldown = step - (num_steps - num_cooldown_steps)
        if into_cooldown < 0:
            return peak_lr
        decay = (1 - into_cooldown / num_cooldown_steps) ** cooldown_power
        return decay * (peak_lr - cooldown_end_lr) + cooldown_end_lr
    raise ValueError(f"unknown schedule {schedule!r}: valid are {', '.join(get_args(ScheduleName))}")


def _cosine(step: int, num_steps: int, peak_lr: float, num_restarts: int) -> float:
    # a period may not be a whole number of steps: everything is scaled by num_restarts + 1 to stay in integers
    into_period = step * (num_restarts + 1) % num_steps
    # operations in open_clip's order, so that the last bit is equal too
    return 0.5 * (1 + math.cos(math.pi * into_period / num_steps)) * peak_lr
