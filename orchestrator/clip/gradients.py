"""The norm of all gradients, and clipping to it, for plain and for sharded ones: a fused kernel takes one kind."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from orchestrator.clip.sharding import is_sharded


def total_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The 2-norm of all gradients together, a scalar on the device, the same on every rank."""
    norms = []
    for part in _kinds(parameters):
        norm = get_total_norm([weight.grad for weight in part if weight.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.linalg.vector_norm(torch.stack(norms))


def clip(parameters: Iterable[nn.Parameter], max_norm: float, norm: torch.Tensor) -> None:
    """Scale the gradients, whose norm is `norm`, down to `max_norm` where they are longer."""
    for part in _kinds(parameters):
        clip_grads_with_norm_(part, max_norm, norm)


def _kinds(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    with_gradient = [weight for weight in parameters if weight.grad is not None]
    kinds = [[weight for weight in with_gradient if is_sharded(weight) == sharded] for sharded in (False, True)]
    return [kind for kind in kinds if kind]
