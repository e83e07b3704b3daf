"""One model on many ranks: DDP, or FSDP2 (`fully_shard`) for towers that do not fit on one device.

FSDP shards each transformer block and, as one unit, the rest, and gathers the weights of the next block in advance. In
bf16 it gathers weights in bf16 and sums gradients in float32; so gains and biases are rounded too, which DDP's autocast
does not do. FSDP does not shard scalars, so the logit scale and bias stay plain tensors and their gradients are
averaged here. FSDP leaves batch norm's running averages to each rank (rank 0's are saved); DDP broadcasts rank 0's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from orchestrator.clip.recipe import Precision, Strategy

# the names that open_clip, timm and Hugging Face give to their sequences of transformer blocks
BLOCK_ROWS = ("resblocks", "blocks", "layer")


def block_rows(towers: nn.Module) -> list[list[nn.Module]]:
    """Return the rows of blocks of both towers, in the order of their calls; empty for towers without any."""
    rows = (module for name, module in towers.named_modules() if name.rpartition(".")[2] in BLOCK_ROWS)
    return [list(row) for row in rows if isinstance(row, (nn.ModuleList, nn.Sequential))]


def blocks(towers: nn.Module) -> list[nn.Module]:
    """Return the blocks of both towers; empty for towers without any."""
    return [block for row in block_rows(towers) for block in row]


def compile_towers(towers: nn.Module, *, num_ranks: int) -> None:
    """Compile in place; the names of parameters do not change.

    One rank compiles the whole. More ranks compile block by block, and a residual net stage by stage: the gradients of
    one part travel while those of the next are computed."""
    for part in compiled_parts(towers) if num_ranks > 1 else [towers]:
        part.compile()


def compiled_parts(towers: nn.Module) -> list[nn.Module]:
    """Return what more than one rank compiles: the blocks, and the stages of image towers without blocks."""
    parts, visual = blocks(towers), towers.get_submodule("model.visual")
    if not blocks(visual):
        trunk = getattr(visual, "trunk", visual)
        stages = [part for part in trunk.children() if isinstance(part, nn.Sequential) and list(part.parameters())]
        parts += stages or [visual]
    return parts


def wrap(towers: nn.Module, *, strategy: Strategy, num_ranks: int, precision: Precision = "fp32") -> nn.Module:
    """Return the module to call in place of `towers`; FSDP changes `towers` itself, one rank needs no wrapper.

    Before the call: the default process group is up, and the towers are on their device, compiled and locked."""
    if num_ranks == 1:
        return towers
    if strategy == "fsdp":
        # FSDP needs contiguous memory; open_clip models are channels last
        towers.to(memory_format=torch.contiguous_format)
        low = torch.bfloat16 if precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=low and torch.float32)
        for block in blocks(towers):
            fully_shard(block, mp_policy=policy)
        scalars = {weight for weight in towers.parameters() if weight.numel() == 1}
        fully_shard(towers, mp_policy=policy, ignored_params=scalars)
        for row in block_rows(towers):
            for block, following in pairwise(row):
                assert isinstance(block, FSDPModule)
                assert isinstance(following, FSDPModule)
                block.set_modules_to_forward_prefetch([following])
        return towers
    return DistributedDataParallel(towers, gradient_as_bucket_view=True)


@contextmanager
def no_sync(wrapped: nn.Module) -> Iterator[None]:
    """Keep the gradients of passes inside the block on their rank; the next pass outside adds to them and syncs."""
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
    """Average over the ranks the gradients of parameters that FSDP does not shard; do nothing without FSDP."""
    if not isinstance(wrapped, FSDPModule):
        return
    gradients = [
        weight.grad for weight in wrapped.parameters() if weight.grad is not None and not is_sharded(weight.grad)
    ]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    for gradient, mean in zip(gradients, together / num_ranks, strict=True):
        gradient.fill_(mean)


def share_buffers(model: nn.Module, num_ranks: int) -> None:
    """Give every rank the buffers of rank 0, such as the running averages of batch norms; every rank calls it.

    DDP does so before a forward pass, so after a step the ranks differ; FSDP never does. Training does not change: it
    does not read running averages, and those of rank 0 are saved."""
    if num_ranks > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def is_sharded(tensor: torch.Tensor | None) -> bool:
    """Whether FSDP spreads the tensor over the ranks."""
    return isinstance(tensor, DTensor)


def full(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor, a copy on the CPU; for a sharded tensor every rank calls it."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's piece of the tensor: the same memory, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor, equal on every rank, with the layout of `like`."""
    on_device = whole.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements) if isinstance(like, DTensor) else on_device
