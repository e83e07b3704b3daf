"""What the losses gather over the ranks of the default process group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        everyone = own.new_empty(dist.get_world_size() * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(everyone, own.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def gather_rows(own: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """[num_ranks * b, dim], rank by rank, from each rank's [b, dim]; its gradient is summed over what all ranks make of
    the rows."""
    return own if num_ranks == 1 else _Gather.apply(own)


def gather_valid(valid: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """bool [num_ranks * b], from each rank's bool [b]."""
    return gather_rows(valid.to(torch.uint8), num_ranks).bool()


def as_global(share: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """The sum of all ranks' shares of a loss, with the gradient that the average over the ranks turns into its own.

    The gradient is that of this rank's share alone, times the number of ranks; the value is what is logged."""
    if num_ranks == 1:
        return share
    total = share.detach().clone()
    dist.all_reduce(total)
    scaled = share * num_ranks
    return scaled + (total - scaled.detach())
