"""The start of a training worker: its share of the cores, the model, and the recipe for its device."""

from __future__ import annotations

import gc
import logging
import math
import os
import tempfile
from dataclasses import replace
from typing import Any

import ray
import torch

from orchestrator.clip import memory, model, precision
from orchestrator.clip.memory import Fit
from orchestrator.clip.model import Clip
from orchestrator.clip.preprocessing import image_input
from orchestrator.clip.recipe import Recipe
from orchestrator.config import Config
from orchestrator.engine.artifact_files import damaged
from orchestrator.errors import first_line
from orchestrator.storage import files
from orchestrator.training.agreement import from_first, gather
from orchestrator.training.job import Job

logger = logging.getLogger(__name__)
# pairs of a worker that are computed at once on CPUs: to measure their memory would take longer than their steps
SMALL_SHARE = 64


def num_threads(job: Job, workers_here: int) -> int:
    """Return a worker's share of its node's cores, as threads for torch.

    Threads that wait for a core spin: on two cores, two trials with two threads each took three times as long as with
    one thread each."""
    return max(1, (os.cpu_count() or 1) // _processes_here(job, workers_here))


def _processes_here(job: Job, workers_here: int) -> int:
    nodes = sum(node["Alive"] for node in ray.nodes())
    trials_here = -(-(job.config.sweep.max_concurrent or 1) // nodes)
    return workers_here * trials_here


def agreed_recipe(job: Job, clip: Clip, device: torch.device, context: Any) -> Recipe:
    """Return the phase's recipe for the devices of all ranks; `context` is Ray Train's.

    `auto` becomes the precision of rank 0's device, and the chunks that the device with the least memory needs."""
    training, num_ranks = job.config.training, context.get_world_size()
    recipe = job.recipe
    if training.precision == "auto":
        recipe = replace(recipe, precision=from_first(precision.native(device), num_ranks))
    if training.local_loss is None:
        recipe = replace(recipe, local_loss=recipe.loss == "clip" and num_ranks > 1 and device.type == "cuda")
    chunks, rows = training.accumulation == "auto", training.loss_rows == "auto"
    slots = job.order.global_batch_size // num_ranks
    if not (chunks or rows) or (device.type == "cpu" and slots <= SMALL_SHARE):
        return recipe
    refusal = memory.refusal(clip, recipe) if chunks else None
    if refusal is not None and device.type == "cpu":
        return recipe
    fit = _fit(job, clip, recipe, device, context, chunks=chunks and refusal is None, rows=rows)
    if context.get_world_rank() == 0:
        _show(job, fit, refusal)
    return recipe if fit is None else fit.recipe


def _fit(
    job: Job, clip: Clip, recipe: Recipe, device: torch.device, context: Any, *, chunks: bool, rows: bool
) -> Fit | None:
    """Return the choice that fits on every rank; None if the model cannot be measured."""
    num_ranks, fit = context.get_world_size(), None
    try:
        share = job.order.global_batch_size // num_ranks
        choice: dict[str, Any] = {"chunks": chunks, "rows": rows, "budget": lambda: _budget(job, device, context)}
        fit = memory.fit(clip, recipe, device, slots=share, num_ranks=num_ranks, **choice)
    except (RuntimeError, NotImplementedError) as error:
        logger.warning("%s: memory is not measured: %s", job.name, first_line(error))
    fits = gather(fit, num_ranks)
    # ranks try the choices in the same order, so the last of them fits everywhere
    return None if None in fits else max(fits, key=lambda one: one.order)


def _budget(job: Job, device: torch.device, context: Any) -> float:
    """Return the bytes that a worker can use on its device."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return memory.budget(free + torch.cuda.memory_reserved(device), num_ranks=context.get_world_size())
    here = ray.get_runtime_context().get_node_id()
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return memory.budget(node.get("memory", math.inf), num_ranks=1) / _processes_here(
        job, context.get_local_world_size()
    )


def _show(job: Job, fit: Fit | None, refusal: str | None) -> None:
    if fit is None:
        return
    if fit.fits:
        logger.info("%s: %s", job.name, fit)
        return
    reason = refusal or "set training.global_batch_size, training.num_workers or training.parallel=fsdp"
    job.signals.warn.remote(f"{job.name}: may run out of memory: {fit}. {reason[0].upper()}{reason[1:]}")


def computed_as(recipe: Recipe) -> dict[str, Any]:
    """Return how the steps were computed, for the record of the phase: what `auto` chose, and what was set."""
    names = ("precision", "local_loss", "loss_rows", "accumulation", "grad_checkpointing")
    return {name: getattr(recipe, name) for name in names}


def build_model(job: Job) -> Clip:
    """Return the model that a phase starts from: new, pre-trained, or that of the phase before.

    Errors: `ValueError` if it cannot be built or loaded, or if it is evaluated during training and takes images that
    are not supported."""
    clip = _built(job)
    if job.sets:
        # fail now, not after hours at the first evaluation
        name = job.config.model.name or "the configured model"
        image_input(name, clip.preprocess_cfg["size"], clip.preprocess_cfg["resize_mode"])
    return clip


def new_model(config: Config) -> Clip:
    """Return the model that a run starts from. Errors: `ValueError` if it cannot be built or loaded."""
    return model.build(
        name=config.model.name,
        config=config.model.config,
        pretrained=config.model.pretrained,
        image_size=config.model.image_size,
        context_length=config.model.context_length,
        seed=config.training.seed,
        loss=config.training.loss,
    )


def _built(job: Job) -> Clip:
    if job.start_uri is None:
        return new_model(job.config)
    with tempfile.TemporaryDirectory() as folder:
        files.copy(job.start_uri, folder)
        try:
            return model.load(folder)
        except ValueError as error:
            # the user knows the artifact, not its copy
            reason = str(error).replace(folder, job.start_uri)
            raise ValueError(str(damaged(job.start_uri, reason))) from error
