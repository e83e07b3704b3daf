"""How a training step would fit into the memory of a type of GPU, without having one.

The step runs on fake tensors, which have shapes but no memory. The bytes are those that torch reports for the type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.config import Config
from orchestrator.config.section import GpuName
from orchestrator.engine.console import Display
from orchestrator.errors import UserError, one_line

GIB = 2**30
# CUDA's own memory in a process: its context and the kernels
CONTEXT_BYTES = 0.6e9
# a usual node, if neither the workers nor the GPUs of the cluster are set
USUAL_GPUS = 8


@dataclass(frozen=True)
class Gpu:
    """The memory of a type of GPU, and whether it computes bf16."""

    gib: float
    has_bf16: bool = True


GPUS: dict[GpuName, Gpu] = {
    "t4": Gpu(14.6, has_bf16=False),
    "v100-16": Gpu(15.8, has_bf16=False),
    "v100-32": Gpu(31.7, has_bf16=False),
    "l4": Gpu(22.0),
    "a10": Gpu(22.0),
    "l40s": Gpu(44.4),
    "rtx4090": Gpu(23.5),
    "a100-40": Gpu(39.4),
    "a100-80": Gpu(79.2),
    "h100": Gpu(79.1),
    "h200": Gpu(139.8),
    "b200": Gpu(178.3),
}


def show_memory(config: Config, display: Display) -> None:
    """Show how training would be computed on `plan.gpu`; nothing if that is not set.

    Errors: `UserError` for a model that cannot be built."""
    if config.plan.gpu is not None:
        for line in _lines(config, config.plan.gpu):
            display.line(line)


def _lines(config: Config, name: GpuName) -> Iterator[str]:
    # imported here: a plan without it needs no torch
    import torch

    from orchestrator.clip import memory
    from orchestrator.clip.recipe import Recipe
    from orchestrator.training.job import recipe_of
    from orchestrator.training.start import new_model

    training, gpu = config.training, GPUS[name]
    workers = training.num_workers or config.cluster.scales_to_gpus or USUAL_GPUS
    slots = training.global_batch_size // workers
    yield (
        f"training on {workers} GPUs {name} ({gpu.gib:,.1f} GiB) with {slots:,} pairs per worker and batch, "
        "estimated with fake tensors:"
    )
    recipe: Recipe = recipe_of(training, training)
    if training.precision == "auto":
        recipe = replace(recipe, precision="bf16" if gpu.has_bf16 else "fp16")
    if training.local_loss is None:
        recipe = replace(recipe, local_loss=recipe.loss == "clip" and workers > 1)
    try:
        clip = new_model(config)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    refusal = memory.refusal(clip, recipe) if training.accumulation == "auto" else None
    budget = memory.budget(gpu.gib * GIB - CONTEXT_BYTES, num_ranks=workers)
    chunks, rows = training.accumulation == "auto" and refusal is None, training.loss_rows == "auto"
    choice: dict[str, Any] = {"chunks": chunks, "rows": rows, "budget": lambda: budget}
    try:
        fit = memory.fit(clip, recipe, torch.device("cuda"), slots=slots, num_ranks=workers, **choice)
    except (RuntimeError, NotImplementedError) as error:
        yield f"  no estimate: fake tensors do not run this model: {one_line(error)}"
        return
    yield f"  {'' if fit.fits else 'does not fit: '}{fit}"
    if refusal is not None:
        yield f"  {refusal}"
