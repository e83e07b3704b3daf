"""The schedules equal those of open_clip_train at every step. Restarts repeat the cosine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from open_clip_train.scheduler import const_lr, const_lr_cooldown, cosine_lr

from orchestrator.clip.schedule import learning_rate

LENGTHS = [(0, 10), (1, 7), (5, 40), (10, 10)]


def rates(num_steps: int, **settings: Any) -> list[float]:
    return [learning_rate(step, peak_lr=5e-4, num_steps=num_steps, **settings) for step in range(num_steps)]


def theirs(adjuster: Any, num_steps: int, *settings: Any) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    adjust = adjuster(optimiser, 5e-4, *settings)
    return [adjust(step) for step in range(num_steps)]


@pytest.mark.parametrize(("num_warmup_steps", "num_steps"), LENGTHS)
@pytest.mark.parametrize(("schedule", "adjuster"), [("cosine", cosine_lr), ("constant", const_lr)])
def test_every_step_equals_open_clip(schedule: str, adjuster: Any, num_warmup_steps: int, num_steps: int) -> None:
    ours = rates(num_steps, schedule=schedule, num_warmup_steps=num_warmup_steps)
    assert ours == theirs(adjuster, num_steps, num_warmup_steps, num_steps)


@pytest.mark.parametrize(("num_warmup_steps", "num_steps"), LENGTHS)
@pytest.mark.parametrize(("num_cooldown_steps", "power", "end"), [(0, 1.0, 0.0), (3, 1.0, 1e-5), (7, 2.0, 0.0)])
def test_every_step_of_a_cooldown_equals_open_clip(
    num_warmup_steps: int, num_steps: int, num_cooldown_steps: int, power: float, end: float
) -> None:
    ours = rates(
        num_steps,
        schedule="constant-cooldown",
        num_warmup_steps=num_warmup_steps,
        num_cooldown_steps=num_cooldown_steps,
        cooldown_power=power,
        cooldown_end_lr=end,
    )
    expected = theirs(const_lr_cooldown, num_steps, num_warmup_steps, num_steps, num_cooldown_steps, power, end)
    assert ours == expected


def test_restarts_are_equal_cosines_after_one_warmup() -> None:
    ours = rates(32, schedule="cosine", num_warmup_steps=2, num_restarts=2)
    period = [0.5 * (1 + math.cos(math.pi * step / 10)) * 5e-4 for step in range(10)]
    assert ours == pytest.approx([2.5e-4, 5e-4, *period * 3], rel=1e-12)
    uneven = rates(16, schedule="cosine", num_warmup_steps=0, num_restarts=2)
    assert [step for step in range(1, 16) if uneven[step] > uneven[step - 1]] == [6, 11]


def test_an_unknown_schedule_names_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'linear': valid are cosine, constant, constant-cooldown"):
        learning_rate(3, schedule="linear", peak_lr=1.0, num_warmup_steps=0, num_steps=5)
