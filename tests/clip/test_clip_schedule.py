"""The schedule is open_clip_train's, step for step."""

from __future__ import annotations

import pytest
import torch
from open_clip_train.scheduler import cosine_lr

from orchestrator.clip.schedule import cosine_with_warmup


@pytest.mark.parametrize(("num_warmup_steps", "num_steps"), [(0, 10), (1, 7), (5, 40), (10, 10)])
def test_every_step_equals_open_clip(num_warmup_steps: int, num_steps: int) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    adjust = cosine_lr(optimiser, 5e-4, num_warmup_steps, num_steps)
    for step in range(num_steps):
        assert cosine_with_warmup(step, peak_lr=5e-4, num_warmup_steps=num_warmup_steps, num_steps=num_steps) == adjust(
            step
        )
