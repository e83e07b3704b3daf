"""The exponential moving average of the weights: average = d * average + (1 - d) * weights, after each step, with
d = min(decay, (1 + step) / (10 + step)): early on the average forgets the initial weights as fast as they are left.

Only what is trained is averaged; batch norm's running averages are taken as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from orchestrator.clip.sharding import full, local, shard_like


class WeightAverage:
    """The average of a model's trainable parameters, by name, sharded as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`, from 0."""
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        move(_locals(self.average.values()), _locals(self.parameters.values()), 0)

    def weights(self) -> dict[str, torch.Tensor]:
        """The whole tensors on the CPU; under FSDP every rank calls it."""
        return {name: full(average) for name, average in self.average.items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        """Put whole tensors in; under FSDP every rank calls it."""
        for name, average in self.average.items():
            average.copy_(shard_like(weights[name], average))


def _locals(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [local(tensor) for tensor in tensors]
