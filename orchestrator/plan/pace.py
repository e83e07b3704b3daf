"""Measure the pace of a model on two or a few pairs, before a stage is measured: it decides how many pairs the stage
gets. On CPUs a pair of a large model takes seconds, and a batch of the run takes hours.

Each measurement is one task with a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from orchestrator.config import Config
from orchestrator.config.embedding import EncoderConfig, Tower
from orchestrator.engine import ray_cluster
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.clip.model import Clip
    from orchestrator.clip.recipe import Recipe

# pairs of a forward pass, and of the two sizes of a step
NUM_PAIRS_CPU = 2
STEP_PAIRS_CPU, STEP_PAIRS_GPU = (1, 2), (16, 64)
# time limit for loading the model and a few passes
PACE_SECONDS = 60.0
# a forward pass more takes a third of a step
ONE_MORE_PASS = 4 / 3
CAPTION = "a photo of something"

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class EncoderPace:
    """The seconds that an encoder needs for a pair with one thread, and the lengths of its vectors."""

    pair_seconds: float
    dims: Mapping[Tower, int]


@dataclass(frozen=True, kw_only=True)
class TrainingPace:
    """A worker's training step: `step_seconds` + n * `pair_seconds` for n pairs, mostly of the optimiser and the model.

    `start_seconds`: loading and building the model; `image_size` in pixels; `peak_bytes` of the process, `gpu_bytes` of
    its tensors on a GPU (0 on CPUs), `num_bytes` of the weights. `accumulation`: the chunks that the run's share of a
    batch needs, with `grad_checkpointing` or not; `memory`: that choice as a line."""

    step_seconds: float
    pair_seconds: float
    start_seconds: float
    image_size: int
    peak_bytes: int = 0
    gpu_bytes: int = 0
    num_bytes: int = 0
    accumulation: int = 1
    grad_checkpointing: bool = False
    memory: str = ""

    def seconds(self, pairs: int) -> float:
        """Return the seconds of a step on some pairs, computed as the run computes its share of a batch."""
        more = ONE_MORE_PASS if self.accumulation > 1 else 1.0
        return self.step_seconds + pairs * self.pair_seconds * more


def training_pace(config: Config, num_workers: int) -> TrainingPace | None:
    """Return the pace of a training step of one of `num_workers` workers.

    None if the model does not load and take four steps within the time limit or in the memory of this machine. Errors:
    `UserError` for a model that cannot be built."""
    num_threads = max(1, ray_cluster.num_cores() // num_workers)
    return _within_limit(_training_pace, config, num_workers, num_threads, "cuda" if ray_cluster.num_gpus() else "cpu")


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


def _training_pace(config: Config, num_workers: int, num_threads: int, device_type: str) -> TrainingPace:
    started = time.perf_counter()
    import torch

    from orchestrator.clip import precision
    from orchestrator.clip.train_step import Batch, TrainStep
    from orchestrator.engine.metering import peak_bytes
    from orchestrator.training.job import recipe_of
    from orchestrator.training.start import new_model

    device = torch.device(device_type)
    torch.set_num_threads(num_threads)
    training = config.training
    if training.precision == "auto":
        training = training.model_copy(update={"precision": precision.native(device)})
    recipe = recipe_of(training, training)
    try:
        clip = new_model(config)
        chosen = _on_gpu(config, clip, recipe, num_workers) if device.type == "cuda" else {}
        # compiling takes longer than the steps that are measured
        train_step = TrainStep(clip, replace(recipe, accumulation=1, compile=False), device=device)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    start_seconds = time.perf_counter() - started

    def seconds(num: int) -> float:
        batch = Batch(
            images=torch.zeros((num, 3, clip.image_size, clip.image_size), dtype=torch.uint8),
            texts=clip.tokenizer([CAPTION] * num),
            valid=torch.ones(num, dtype=torch.bool),
            keys=torch.arange(num),
        )
        # reading the loss waits for the device
        return second_call(lambda: train_step.run(batch, lr=0.0, step=0).loss.item(), time.perf_counter)

    few, more = STEP_PAIRS_GPU if device.type == "cuda" else STEP_PAIRS_CPU
    of_few, of_more = seconds(few), seconds(more)
    # not less than half of a pair's share of the larger step: the difference of two short steps is uncertain
    pair_seconds = max((of_more - of_few) / (more - few), 0.5 * of_more / more)
    return TrainingPace(
        step_seconds=max(0.0, of_more - more * pair_seconds),
        pair_seconds=pair_seconds,
        start_seconds=start_seconds,
        image_size=clip.image_size,
        peak_bytes=peak_bytes(),
        gpu_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        num_bytes=sum(weight.numel() * weight.element_size() for weight in clip.model.parameters()),
        **chosen,
    )


def _on_gpu(config: Config, clip: Clip, recipe: Recipe, num_workers: int) -> dict[str, Any]:
    """Return what `accumulation=auto` chooses on this GPU for the run's share of a batch."""
    import torch

    from orchestrator.clip import memory

    training = config.training
    if training.accumulation != "auto":
        return {"accumulation": training.accumulation, "grad_checkpointing": training.grad_checkpointing}
    device, slots = torch.device("cuda"), training.global_batch_size // num_workers
    refusal = memory.refusal(clip, recipe)
    recipe = replace(recipe, local_loss=recipe.local_loss or (recipe.loss == "clip" and num_workers > 1))

    def budget() -> float:
        torch.cuda.empty_cache()
        return memory.budget(torch.cuda.mem_get_info(device)[0], num_ranks=num_workers)

    choice: dict[str, Any] = {"chunks": refusal is None, "rows": training.loss_rows == "auto", "budget": budget}
    fit = memory.fit(clip, recipe, device, slots=slots, num_ranks=num_workers, **choice)
    return {
        "accumulation": fit.recipe.accumulation,
        "grad_checkpointing": fit.recipe.grad_checkpointing,
        "memory": f"{fit}" if refusal is None else f"{fit}; {refusal}",
    }


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
