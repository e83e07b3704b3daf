"""Measure the pace of a model on two or a few pairs, before a stage is measured: it decides how many pairs the stage
gets. On CPUs a pair of a large model takes seconds, and a batch of the run takes hours.

Each measurement is one task with a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from orchestrator.config import Config
from orchestrator.config.embedding import EncoderConfig, Tower
from orchestrator.engine import ray_cluster
from orchestrator.errors import UserError

# pairs of a step or a forward pass
NUM_PAIRS_CPU, NUM_PAIRS_GPU = 2, 64
# time limit for loading the model and two passes
PACE_SECONDS = 45.0
CAPTION = "a photo of something"

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class EncoderPace:
    """The seconds that an encoder needs for a pair with one thread, and the lengths of its vectors."""

    pair_seconds: float
    dims: Mapping[Tower, int]


def training_pace(config: Config, num_workers: int) -> float | None:
    """Return the seconds per pair of a training step of one of `num_workers` workers.

    None if the model does not load and take two steps within the time limit or in the memory of this machine. Errors:
    `UserError` for a model that cannot be built."""
    num_threads = max(1, ray_cluster.num_cores() // num_workers)
    return _within_limit(_training_seconds, config, num_threads, "cuda" if ray_cluster.num_gpus() else "cpu")


def encoder_pace(settings: EncoderConfig, num_threads: int) -> EncoderPace | None:
    """Return the pace of an encoder with `num_threads` threads on CPUs; None as for `training_pace`."""
    return _within_limit(_encoder_pace, settings, num_threads)


def _within_limit(measure: Callable[..., Found], *arguments: Any) -> Found | None:
    num_gpus = 1 if ray_cluster.num_gpus() else 0
    # one call for each process: the next stage needs the memory of the model. "DEFAULT": outside the placement group of
    # a sweep's trial
    options: dict[str, Any] = {"max_calls": 1, "max_retries": 0, "scheduling_strategy": "DEFAULT", "num_gpus": num_gpus}
    environment = {} if num_gpus else {"env_vars": ray_cluster.CPU_ALLOCATOR}
    task: Any = ray.remote(**options, runtime_env=environment)(measure)
    answer = task.remote(*arguments)
    try:
        found: Found = ray.get(answer, timeout=PACE_SECONDS)
    except GetTimeoutError:
        ray.cancel(answer, force=True)
        return None
    except RayTaskError as error:
        if isinstance(error, UserError):
            raise
        # such as a lack of GPU memory
        return None
    except RayError:
        return None
    return found


def _training_seconds(config: Config, num_threads: int, device_type: str) -> float:
    import torch

    from orchestrator.clip import precision
    from orchestrator.clip.train_step import Batch, TrainStep
    from orchestrator.training.job import recipe_of
    from orchestrator.training.start import new_model

    device = torch.device(device_type)
    torch.set_num_threads(num_threads)
    training = config.training
    if training.precision == "auto":
        training = training.model_copy(update={"precision": precision.native(device)})
    try:
        clip = new_model(config)
        # compiling takes longer than the steps that are measured
        recipe = replace(recipe_of(training, training), accumulation=1, compile=False)
        train_step = TrainStep(clip, recipe, device=device)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    num = NUM_PAIRS_GPU if device.type == "cuda" else NUM_PAIRS_CPU
    batch = Batch(
        images=torch.zeros((num, 3, clip.image_size, clip.image_size), dtype=torch.uint8),
        texts=clip.tokenizer([CAPTION] * num),
        valid=torch.ones(num, dtype=torch.bool),
        keys=torch.arange(num),
    )
    # reading the loss waits for the device
    return second_call(lambda: train_step.run(batch, lr=0.0, step=0).loss.item(), time.perf_counter) / num


def _encoder_pace(settings: EncoderConfig, num_threads: int) -> EncoderPace:
    import torch

    from orchestrator.embedding.actor import build_encoder

    torch.set_num_threads(num_threads)
    try:
        encoder = build_encoder(settings).place(torch.device("cpu"), settings.precision)
    except ValueError as error:
        raise UserError(f"embedding: {error}") from error
    size, num = encoder.image_input.size, NUM_PAIRS_CPU

    def embed() -> None:
        if "image" in encoder.dims:
            encoder.encode_images(torch.zeros((num, 3, size, size), dtype=torch.uint8))
        if "text" in encoder.dims:
            encoder.encode_texts([CAPTION] * num)

    return EncoderPace(pair_seconds=second_call(embed, time.perf_counter) / num, dims=dict(encoder.dims))


def second_call(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds of the second call; the first one loads libraries."""
    call()
    started = clock()
    call()
    return clock() - started
