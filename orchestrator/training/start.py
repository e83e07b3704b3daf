"""The start of a training worker: its share of the cores, the model, and the recipe with a precision for its device."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import ray
import torch

from orchestrator.clip import model, precision
from orchestrator.clip.model import Clip
from orchestrator.clip.preprocessing import image_input
from orchestrator.clip.recipe import Recipe
from orchestrator.config import Config
from orchestrator.engine.artifact_files import damaged
from orchestrator.storage import files
from orchestrator.training.agreement import from_first
from orchestrator.training.job import Job


def num_threads(job: Job, workers_here: int) -> int:
    """Return a worker's share of its node's cores, as threads for torch.

    Threads that wait for a core spin: on two cores, two trials with two threads each took three times as long as with
    one thread each."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    trials_here = -(-(job.config.sweep.max_concurrent or 1) // nodes)
    return max(1, (os.cpu_count() or 1) // (workers_here * trials_here))


def agreed_recipe(job: Job, device: torch.device, num_ranks: int) -> Recipe:
    """Return the phase's recipe; with precision `auto`, all ranks use the precision for the device of rank 0."""
    if job.config.training.precision != "auto":
        return job.recipe
    return replace(job.recipe, precision=from_first(precision.native(device), num_ranks))


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
