"""The arithmetic: a GPU against the CPU, no hidden waits, and a resume that changes no bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from orchestrator.clip import checkpoint, zero_shot
from orchestrator.clip.train_step import Batch, TrainStep
from tests.gpu.harness import Check, at_most, equal, figure
from tests.gpu.lab import Lab
from tests.gpu.models import distance, gradients_of, made_up, train_step, weights_of

MODEL = "ViT-B-32"
# the largest relative distance to fp32 on the CPU: of the loss, of all gradients together, of the weights' change in
# one step. float32 sums in another order; TF32 has 10 bits and bf16 has 7, and the features of an untrained model are
# close together
BOUNDS = {"fp32": (1e-5, 1e-3, 1e-3), "TF32": (2e-3, 0.03, 0.03), "bf16": (1e-2, 0.15, 0.15)}
RECIPES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "tf32": False},
    "TF32": {"precision": "fp32", "tf32": True},
    "bf16": {"precision": "bf16"},
}
# AdamW divides by the gradient's size, which turns rounding near 0 into a change of sign; this epsilon smooths it
SMOOTH_EPS = 1e-2


def against_cpu(lab: Lab) -> Iterator[Check]:
    """The loss, the gradients and one optimiser step on the GPU are those of fp32 on the CPU."""
    settings: dict[str, Any] = {"eps": SMOOTH_EPS, "grad_clip_norm": 1.0}
    cpu = train_step(lab, MODEL, torch.device("cpu"), precision="fp32", **settings)
    batch = made_up(lab, cpu.clip, lab.size(32, 4))
    wanted = _one_step(cpu, batch)
    for precision, bounds in BOUNDS.items():
        got = _one_step(train_step(lab, MODEL, **RECIPES[precision], **settings), batch)
        yield at_most(f"{precision}: relative difference of the loss", abs(got[0] / wanted[0] - 1), bounds[0])
        yield at_most(f"{precision}: relative distance of the gradients", distance(got[1], wanted[1]), bounds[1])
        yield at_most(f"{precision}: relative distance of the step", distance(got[2], wanted[2]), bounds[2])
    yield from _ranks_against_cpu(lab)


def _one_step(step: TrainStep, batch: Batch) -> tuple[float, list[torch.Tensor], list[torch.Tensor]]:
    before = weights_of(step)
    loss = step.run(batch, lr=1e-2, step=0).loss.item()
    return loss, gradients_of(step), [new - old for new, old in zip(weights_of(step), before, strict=True)]


def _ranks_against_cpu(lab: Lab) -> Iterator[Check]:
    draw = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(lab.size(5000, 50), lab.size(512, 8), generator=draw) for _ in range(2))
    texts += images
    own = torch.arange(len(images))
    wanted = zero_shot.target_ranks(images, texts, own)
    got = zero_shot.target_ranks(images.to(lab.device), texts.to(lab.device), own.to(lab.device)).cpu()
    yield equal("retrieval ranks that differ from the CPU's", int((got != wanted).sum()), 0)


def no_waits(lab: Lab) -> Iterator[Check]:
    """No call of a training step waits for the device."""
    num_steps = lab.size(20, 2)
    chunks: dict[str, Any] = {"grad_clip_norm": 1.0, "ema_decay": 0.99, "accumulation": 2}
    for name, settings in {"plain": {}, "clipped norm, averaged weights, two chunks": chunks}.items():
        step = train_step(lab, MODEL, precision="bf16", **settings)
        batch = made_up(lab, step.clip, lab.size(256, 4))
        # the first step builds the optimiser's state
        step.run(batch, lr=1e-4, step=0)
        waits = ""
        with lab.refused_waits():
            try:
                for number in range(1, num_steps + 1):
                    step.run(batch, lr=1e-4, step=number)
            except RuntimeError as error:
                waits = " ".join(str(error).split())[:200]
        yield equal(f"{name}: call that waits within {num_steps} steps", waits or "none", "none")


def resume(lab: Lab) -> Iterator[Check]:
    """Training that resumes from a checkpoint ends with the same bits as training that was not interrupted."""
    # cuBLAS reads it at its first use, which is in this process
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    first, second = lab.size(5, 2), lab.size(10, 4)
    settings: dict[str, Any] = {"precision": "bf16", "grad_clip_norm": 1.0, "ema_decay": 0.99}
    for is_exact in (False, True):
        torch.use_deterministic_algorithms(is_exact)
        whole = train_step(lab, MODEL, **settings)
        batches = [made_up(lab, whole.clip, lab.size(256, 4), seed=seed) for seed in range(second)]
        _train(whole, batches, 0, first)
        state = whole.state()
        assert state is not None
        checkpoint.save(state, lab.scratch / "resume.pt")
        _train(whole, batches, first, second)
        resumed = train_step(lab, MODEL, **settings)
        resumed.restore(checkpoint.load(lab.scratch / "resume.pt"))
        _train(resumed, batches, first, second)
        pairs = zip(weights_of(resumed), weights_of(whole), strict=True)
        changed = sum(int((one != other).sum()) for one, other in pairs)
        if is_exact:
            yield equal(f"weights that differ after {second} steps, deterministic kernels", changed, 0)
        else:
            yield figure(f"weights that differ after {second} steps, the default kernels", changed)


def _train(step: TrainStep, batches: list[Batch], begin: int, end: int) -> None:
    for number in range(begin, end):
        step.run(batches[number], lr=1e-4, step=number)
