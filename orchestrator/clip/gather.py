"""What the losses gather over the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist


def gather_valid(valid: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """bool [num_ranks * b], from each rank's bool [b]."""
    if num_ranks == 1:
        return valid
    gathered = [torch.empty_like(valid, dtype=torch.uint8) for _ in range(num_ranks)]
    dist.all_gather(gathered, valid.to(torch.uint8))
    return torch.cat(gathered).bool()


def as_global(share: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """The sum of all ranks' shares of a loss, with the gradient that the average over the ranks turns into its own.

    The gradient is that of this rank's share alone, times the number of ranks; the value is what is logged."""
    if num_ranks == 1:
        return share
    total = share.detach().clone()
    dist.all_reduce(total)
    scaled = share * num_ranks
    return scaled + (total - scaled.detach())
