"""Many ranks, one model: DDP, or FSDP2 (`fully_shard`) for towers that outgrow a device.

FSDP shards each transformer block and, as one unit, the rest. Autocast is used with it as with DDP and not its own
mixed precision: the numbers are DDP's in every precision, for twice the bytes gathered in bf16. It does not shard
scalars, so the logit scale and bias stay plain and their gradients are averaged here. It leaves batch norm's running
averages to each rank (rank 0's are saved), where DDP broadcasts rank 0's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from orchestrator.clip.recipe import Strategy
from orchestrator.clip.sharding import is_sharded
from orchestrator.clip.towers import Towers

# what open_clip, timm and Hugging Face call their rows of blocks
BLOCK_ROWS = ("resblocks", "blocks", "layer")


def blocks(towers: nn.Module) -> list[nn.Module]:
    """The transformer blocks of both towers; none where they are built otherwise."""
    rows = (module for name, module in towers.named_modules() if name.rpartition(".")[2] in BLOCK_ROWS)
    return [block for row in rows if isinstance(row, (nn.ModuleList, nn.Sequential)) for block in row]


def compile_towers(towers: Towers, *, num_ranks: int) -> None:
    """Compile in place: whole for one rank; for more, block by block, so that the gradients of a block travel while
    those of the next are computed. Names of parameters stay as they are."""
    parts = blocks(towers) if num_ranks > 1 else []
    for part in parts or [towers]:
        part.compile()


def wrap(towers: Towers, *, strategy: Strategy, num_ranks: int) -> nn.Module:
    """What to call in place of the towers; FSDP changes them themselves. One rank needs nothing.

    The default process group is up, the towers are on their device, compiled and locked."""
    if num_ranks == 1:
        return towers
    if strategy == "fsdp":
        # FSDP wants plain memory, open_clip models come channels last
        towers.to(memory_format=torch.contiguous_format)
        for block in blocks(towers):
            fully_shard(block)
        fully_shard(towers, ignored_params={weight for weight in towers.parameters() if weight.numel() == 1})
        return towers
    return DistributedDataParallel(towers, gradient_as_bucket_view=True)


@contextmanager
def no_sync(wrapped: nn.Module) -> Iterator[None]:
    """Gradients of forward and backward passes inside stay on their rank, to be added to those of the next pass."""
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    elif isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(False)
        yield
        wrapped.set_requires_gradient_sync(True)
    else:
        yield


def average_plain_gradients(wrapped: nn.Module, num_ranks: int) -> None:
    """What FSDP leaves undone: the mean over the ranks of the gradients of parameters that are not sharded."""
    if not isinstance(wrapped, FSDPModule):
        return
    gradients = [
        weight.grad for weight in wrapped.parameters() if weight.grad is not None and not is_sharded(weight.grad)
    ]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    for gradient, mean in zip(gradients, together / num_ranks, strict=True):
        gradient.fill_(mean)
