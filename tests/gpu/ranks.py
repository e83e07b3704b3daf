"""More than one rank on one GPU: the collectives, the shares of the loss, and two processes against one."""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from orchestrator.clip import loss as losses
from orchestrator.clip import parallel
from orchestrator.clip.loss import MaskedClipLoss
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.towers import Towers
from orchestrator.clip.train_step import Batch, TrainStep
from tests.gpu.harness import Check, Skip, at_most, equal, figure
from tests.gpu.lab import Lab
from tests.gpu.models import built, distance, gradients_of, made_up, train_step

MODEL = "ViT-B-32"
NUM_RANKS = 2
Features = tuple[torch.Tensor, torch.Tensor]


def one_rank(lab: Lab) -> Iterator[Check]:
    """nccl with one rank: DDP and FSDP give the gradients of the bare towers."""
    dist.init_process_group(
        lab.size("nccl", "gloo"), init_method=f"file://{lab.scratch}/one_rank", rank=0, world_size=1
    )
    sent = torch.arange(8.0, device=lab.device)
    together, own = torch.empty_like(sent), torch.empty_like(sent)
    dist.all_gather_into_tensor(together, sent)
    dist.reduce_scatter_tensor(own, together)
    dist.all_reduce(own)
    yield equal("elements that collectives change", int((own != sent).sum()), 0)
    clip = built(lab, MODEL)
    batch = made_up(lab, clip, lab.size(64, 4))
    towers = Towers(clip.model.to(lab.device), trim_captions=True)
    wanted = _tower_gradients(towers, towers, batch, lab)
    ddp = copy.deepcopy(towers)
    got = _tower_gradients(ddp, DistributedDataParallel(ddp, gradient_as_bucket_view=True), batch, lab)
    yield at_most("DDP: relative distance of the gradients", distance(got, wanted), 1e-5)
    fsdp = copy.deepcopy(towers)
    # FSDP shards over all ranks of the group, here one; the number only has to be more than 1
    wrapped = parallel.wrap(fsdp, strategy="fsdp", num_ranks=NUM_RANKS, precision="fp32")
    got = _tower_gradients(fsdp, wrapped, batch, lab)
    yield at_most("FSDP: relative distance of the gradients", distance(got, wanted), 1e-5)
    dist.destroy_process_group()


def _tower_gradients(towers: Towers, wrapped: torch.nn.Module, batch: Batch, lab: Lab) -> list[torch.Tensor]:
    images = batch.images.to(lab.device).float().div(255)
    outputs = wrapped(images, batch.texts.to(lab.device))
    logits = outputs.scale * outputs.images @ outputs.texts.T
    F.cross_entropy(logits, torch.arange(len(images), device=lab.device)).backward()
    return [parallel.full(weight.grad) for weight in towers.parameters() if weight.grad is not None]


def shares(lab: Lab) -> Iterator[Check]:
    """The loss of 32,768 pairs, whole and as one of eight ranks: the same value and gradients, less time and memory."""
    num_ranks, num_pairs, dim = 8, lab.size(32_768, 64), lab.size(512, 8)
    draw = torch.Generator().manual_seed(0)
    every = torch.randn(2, num_pairs, dim, generator=draw).to(lab.device)
    images, texts = F.normalize(every, dim=-1)
    scale = torch.tensor(14.3, device=lab.device)
    cost = {}
    wanted, wanted_gradient, cost["whole"] = _loss_share(lab, images, texts, scale, rank=0, num_ranks=1)
    chunked = _loss_share(lab, images, texts, scale, rank=0, num_ranks=1, rows=num_pairs // 32)
    cost[f"whole, {num_pairs // 32:,} rows at a time"] = chunked[2]
    yield at_most("relative difference of the loss by rows", abs(chunked[0] / wanted - 1), 1e-5)
    yield at_most("relative distance of the gradients by rows", distance([chunked[1]], [wanted_gradient]), 1e-4)
    total, gradients = 0.0, torch.zeros_like(every)
    for rank in range(num_ranks):
        share, gradient, cost["local"] = _loss_share(lab, images, texts, scale, rank=rank, num_ranks=num_ranks)
        total += share
        gradients += gradient
    yield at_most("relative difference of the sum of the ranks' losses", abs(total / wanted - 1), 1e-5)
    off = distance([gradients], [wanted_gradient])
    yield at_most("relative distance of the sum of the ranks' gradients", off, 1e-4)
    for way, (seconds, gib) in cost.items():
        yield figure(f"{way}: forward and backward", seconds * 1000, "ms")
        yield figure(f"{way}: memory beside the features", gib, "GiB")


def _loss_share(
    lab: Lab,
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    *,
    rank: int,
    num_ranks: int,
    rows: int | None = None,
) -> tuple[float, torch.Tensor, tuple[float, float]]:
    """Return a rank's part of the loss, the gradient of all features [2, n, dim], and the seconds and GiB."""
    every = torch.stack([images, texts]).requires_grad_()
    size = len(images) // num_ranks
    mine = slice(rank * size, (rank + 1) * size)
    loss = MaskedClipLoss(local_loss=num_ranks > 1, rows=rows, rank=rank, num_ranks=num_ranks)
    valid = torch.ones(size, dtype=torch.bool, device=lab.device)
    value = torch.zeros(())

    def once() -> None:
        nonlocal value
        every.grad = None
        with _simulated_gathers(every, valid, num_ranks):
            value = loss(every[0, mine], every[1, mine], scale, valid)
        value.backward()

    lab.free()
    held = lab.held_gib()
    seconds = lab.median_seconds(once, rounds=lab.size(5, 1) if rank == 0 else 1)
    assert every.grad is not None
    return value.item(), every.grad, (seconds, lab.peak_gib() - held)


@contextmanager
def _simulated_gathers(every: torch.Tensor, valid: torch.Tensor, num_ranks: int) -> Iterator[None]:
    """Let the gathers of a loss return the features of all ranks, and its sum over ranks this rank's share."""
    if num_ranks == 1:
        yield
        return
    together = torch.cat([every[0], every[1]], dim=1)

    def gathered(own: torch.Tensor, _: int) -> torch.Tensor:
        return valid.repeat(num_ranks).to(own.dtype) if own.dim() == 1 else together

    with mock.patch.multiple(losses, gather_rows=gathered, as_global=lambda share, _: share):
        yield


def two_processes(lab: Lab) -> Iterator[Check]:
    """Two ranks on one GPU give the loss and the gradients of one process with the whole batch."""
    for backend in lab.size(("nccl", "gloo"), ("gloo",)):
        started = time.monotonic()
        problem = _run_ranks(lab, backend, seconds=lab.size(40.0, 60.0))
        yield figure(f"{backend} with two ranks on one device", problem or "works", "")
        yield figure(f"{backend}: time", time.monotonic() - started, "s")
        if not problem:
            break
    else:
        raise Skip("no backend runs two ranks on one device: the simulated ranks of `shares` stand alone")
    batch = made_up(lab, built(lab, MODEL), lab.size(64, 8))
    whole = train_step(lab, MODEL, precision="fp32", tf32=False)
    loss = whole.run(batch, lr=0.0, step=0).loss.item()
    for local_loss in (False, True):
        got = torch.load(lab.scratch / f"ranks_{local_loss}.pt")
        yield at_most(f"local_loss={local_loss}: relative difference of the loss", abs(got["loss"] / loss - 1), 1e-5)
        off = distance(got["gradients"], gradients_of(whole))
        yield at_most(f"local_loss={local_loss}: relative distance of the gradients", off, 1e-3)


def _run_ranks(lab: Lab, backend: str, *, seconds: float) -> str:
    """Run both ranks; return why they did not end well, or nothing. This process must not have used the GPU."""
    forked = multiprocessing.get_context("fork")
    ranks = [forked.Process(target=_rank, args=(lab, backend, rank)) for rank in range(NUM_RANKS)]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + min(seconds, lab.seconds_left - 5)
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < end:
        if any(rank.exitcode for rank in ranks):
            break
        time.sleep(0.1)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    if codes == [0] * NUM_RANKS:
        return ""
    reasons = [path.read_text() for path in sorted(lab.scratch.glob(f"problem_{backend}_*"))]
    return reasons[0] if reasons else f"exit codes {codes} after {seconds:.0f} s at most"


def _rank(lab: Lab, backend: str, rank: int) -> None:
    try:
        _one_of_two(lab, backend, rank)
    except Exception as error:
        (lab.scratch / f"problem_{backend}_{rank}").write_text(" ".join(str(error).split())[:200])
        raise


def _one_of_two(lab: Lab, backend: str, rank: int) -> None:
    rendezvous = f"file://{Path(lab.scratch, backend)}"
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=NUM_RANKS)
    for local_loss in (False, True):
        clip = built(lab, MODEL)
        whole = made_up(lab, clip, lab.size(64, 8))
        own = _share_of(whole, rank)
        recipe = Recipe(precision="fp32", tf32=False, local_loss=local_loss)
        step = TrainStep(clip, recipe, device=lab.device, rank=rank, num_ranks=NUM_RANKS)
        loss = step.run(own, lr=0.0, step=0).loss.item()
        if rank == 0:
            found: dict[str, Any] = {"loss": loss, "gradients": gradients_of(step)}
            torch.save(found, lab.scratch / f"ranks_{local_loss}.pt")
    dist.destroy_process_group()


def _share_of(batch: Batch, rank: int) -> Batch:
    assert batch.keys is not None
    tensors = (batch.images, batch.texts, batch.valid, batch.keys)
    return Batch(*(tensor.chunk(NUM_RANKS)[rank] for tensor in tensors))
