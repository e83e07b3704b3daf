"""Tensors that FSDP spreads over the ranks, and plain ones, under one roof."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: torch.Tensor | None) -> bool:
    """Whether the tensor lies on several ranks."""
    return isinstance(tensor, DTensor)


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, a copy on the CPU; for a sharded one every rank calls it."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What of the tensor lies on this rank: the memory itself, no copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The whole tensor, the same on every rank, laid out as `like` is."""
    on_device = whole.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements) if isinstance(like, DTensor) else on_device
