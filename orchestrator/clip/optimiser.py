"""The optimiser of a step: AdamW, the gradient norm and clipping, and the exponential moving average of the weights.

The average after step number `step` is average = d * average + (1 - d) * weights, with
d = min(decay, (1 + step) / (10 + step)): at the start, the average forgets the initial weights as fast as training
moves away from them. Only trained weights are averaged; batch norm's running averages are copied as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from orchestrator.clip.parallel import full, is_sharded, local, shard_like
from orchestrator.clip.recipe import Recipe

FUSED_DEVICES = ("cpu", "cuda")


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: to matrices, but not to batch or layer norm, biases and the logit scale.

    This is open_clip_train's rule."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in groups: scalars, others without decay, others with decay.

    Move the model to its device first. The learning rate is 0 until it is set before each step."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    # FSDP does not shard scalars, and a fused update needs tensors of one kind
    scalars = [weight for _, weight in named if weight.numel() == 1]
    undecayed = [weight for name, weight in named if weight.numel() > 1 and not is_decayed(name, weight)]
    decayed = [weight for name, weight in named if is_decayed(name, weight)]
    groups = [
        {"params": scalars, "weight_decay": 0.0},
        {"params": undecayed, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": recipe.weight_decay},
    ]
    fused = all(weight.device.type in FUSED_DEVICES for _, weight in named)
    return torch.optim.AdamW(groups, lr=0.0, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=fused)


def total_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Return the 2-norm of all gradients together, a scalar on the device, equal on every rank."""
    norms = []
    for part in _kinds(parameters):
        norm = get_total_norm([weight.grad for weight in part if weight.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, norm: torch.Tensor) -> None:
    """Scale the gradients down to `max_norm` if `norm`, their 2-norm, is larger."""
    for part in _kinds(parameters):
        clip_grads_with_norm_(part, max_norm, norm)


def _kinds(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    # plain and sharded gradients apart: a fused kernel takes tensors of one kind
    with_gradient = [weight for weight in parameters if weight.grad is not None]
    kinds = [[weight for weight in with_gradient if is_sharded(weight) == sharded] for sharded in (False, True)]
    return [kind for kind in kinds if kind]


class WeightAverage:
    """The moving average of a model's trainable parameters, by name, sharded in the same way."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after step number `step`, counted from 0."""
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        move(_locals(self.average.values()), _locals(self.parameters.values()), 0)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the whole tensors on the CPU; under FSDP every rank calls it."""
        return {name: full(average) for name, average in self.average.items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        """Set the average from whole tensors; under FSDP every rank calls it."""
        for name, average in self.average.items():
            average.copy_(shard_like(weights[name], average))


def _locals(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [local(tensor) for tensor in tensors]
