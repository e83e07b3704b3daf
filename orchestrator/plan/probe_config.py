"""Reduce a run's configuration to what a probe can do in a minute, with the same work per pair."""

from __future__ import annotations

import sys
from typing import Any

from orchestrator.config import (
    Budgeted,
    ClipScoreStep,
    ClusterConfig,
    Clustering,
    Config,
    EvaluationConfig,
    KeepListStep,
    Limits,
    ParquetSource,
    RandomStep,
    SourceConfig,
    StepConfig,
    TrackingConfig,
    WebDatasetSource,
)
from orchestrator.config.embedding import EncoderConfig
from orchestrator.engine import ray_cluster

# most pairs per worker in a forward pass, and most steps: enough to keep a GPU busy; a CPU needs fewer. A step on more
# pairs comes before more steps, but the least number of steps, of which the first ones only warm up, comes first
GPU_CHUNK, CPU_CHUNK = 2048, 64
GPU_STEPS, CPU_STEPS = 40, 8
LEAST_STEPS = 4
# what a worker computes in the steps of a phase, and an actor in the batches of an encoder, at most; start-up, reading
# and saving come on top. Where not even the least work fits, a stage is not measured
WORK_SECONDS, MOST_WORK_SECONDS = 20.0, 30.0
# the start of a process with the model: workers start at the same time, on the same cores, and save it at the end
MOST_START_SECONDS = 15.0
# batches per encoding actor; the first batches only fill the pipeline
GPU_BATCHES, CPU_BATCHES = 8, 2
CPU_ENCODER_BATCH = 32
MAX_ITERATIONS, MAX_CLUSTERS, PAIRS_PER_CLUSTER = 4, 2000, 8
# CPUs that read data beside the training workers, and CPUs that an autoscaler should add for the probe
READING_CPUS, ENOUGH_CPUS = 2, 8
KEEP_FRACTION = 0.5


def cluster_of(config: Config) -> ClusterConfig:
    """Return a cluster that scales up to one or two more nodes at most."""
    cpus, gpus = config.cluster.scales_to_cpus, config.cluster.scales_to_gpus
    changes = {"scales_to_cpus": cpus and min(cpus, ENOUGH_CPUS), "scales_to_gpus": gpus and 1}
    return config.cluster.model_copy(update=changes)


def in_own_store(config: Config, store: str) -> Config:
    """Return the config without trackers and evaluation, with its own store."""
    limits = Limits(max_broken_shards=1, max_broken_pairs=1, max_captionless=config.source.limits.max_captionless)
    changes = {
        "store": store,
        "source": config.source.model_copy(update={"limits": limits} | _without_cache(config.source)),
        "tracking": TrackingConfig(tensorboard=False),
        "evaluation": EvaluationConfig(),
        "training": config.training.model_copy(update={"evaluate_every_steps": None, "keep_model": "last"}),
        "finetune": config.finetune.model_copy(update={"after": None}),
    }
    return config.model_copy(update=changes)


def _without_cache(source: SourceConfig) -> dict[str, Any]:
    return {"cache": None} if isinstance(source, (WebDatasetSource, ParquetSource)) else {}


def with_steps(config: Config, steps: dict[str, StepConfig]) -> Config:
    """Return the config with only these selection steps."""
    settings = {**config.selection.settings, **steps}
    return config.model_copy(
        update={"selection": config.selection.model_copy(update={"steps": tuple(steps), "settings": settings})}
    )


def step_of(step: StepConfig, num_pairs: int, num_clusters: float) -> StepConfig:
    """Return a step for `num_pairs` pairs with a budget of half of them and about `num_clusters` clusters.

    The cost per pair does not depend on how many are kept. A keep list becomes a random selection."""
    if isinstance(step, KeepListStep):
        return RandomStep(keep_fraction=KEEP_FRACTION)
    changes: dict[str, Any] = {}
    clustering: Clustering | None = getattr(step, "clustering", None)
    if clustering is not None:
        smaller = {
            "k": int(max(1, min(num_clusters, clustering.k, MAX_CLUSTERS, num_pairs // PAIRS_PER_CLUSTER))),
            "num_iterations": min(clustering.num_iterations, MAX_ITERATIONS),
        }
        changes["clustering"] = clustering.model_copy(update=smaller)
    if isinstance(step, Budgeted):
        changes |= {"keep_pairs": None, "keep_fraction": KEEP_FRACTION}
    if isinstance(step, ClipScoreStep):
        changes["threshold"] = None
    return step.model_copy(update=changes)


def encoder_of(settings: EncoderConfig, pair_seconds: float = 0.0) -> EncoderConfig:
    """Return an encoder with small batches on CPUs and no limit on bad pairs, which only the run enforces.

    The batches of an actor take at most `WORK_SECONDS` if a pair takes `pair_seconds`, but have at least one pair."""
    batch_size = settings.batch_size
    if not ray_cluster.num_gpus():
        # every batch is computed twice, and the second time is measured
        batch_size = min(batch_size, CPU_ENCODER_BATCH, _fitting(2 * CPU_BATCHES * pair_seconds))
    return settings.model_copy(update={"batch_size": max(1, batch_size), "max_bad_pairs": 1.0})


def encoder_fits(pair_seconds: float) -> bool:
    """Return whether batches of one pair are short enough to be measured on CPUs."""
    return 2 * CPU_BATCHES * pair_seconds <= MOST_WORK_SECONDS


def _fitting(seconds: float) -> int:
    """Return how often a piece of work of some seconds fits into `WORK_SECONDS`."""
    return int(WORK_SECONDS / seconds) if seconds else sys.maxsize


def rows_to_encode(settings: EncoderConfig, num_actors: int, num_parts: int) -> int:
    """Return the rows per part that give every actor a few batches."""
    batches = num_actors * (GPU_BATCHES if ray_cluster.num_gpus() else CPU_BATCHES)
    return -(-batches * settings.batch_size // num_parts)


def training_of(
    config: Config, num_pairs: int, full_workers: int, pair_seconds: float = 0.0, accumulation: int | None = None
) -> Config:
    """Return a config that trains for a few steps, with as many workers as the current nodes have room for.

    Each worker has the share of a batch that it will have in the run, up to a limit, and accumulates at most twice:
    `accumulation` are the chunks of the run if the config leaves them to be chosen (None: one). If a pair takes a
    worker `pair_seconds`, all steps together take at most `WORK_SECONDS`, but have at least one pair."""
    training, has_gpus = config.training, ray_cluster.num_gpus() > 0
    room = ray_cluster.num_gpus() or max(1, ray_cluster.num_cpus() - READING_CPUS)
    workers = min(full_workers, room, num_pairs)
    in_run = (accumulation or 1) if training.accumulation == "auto" else training.accumulation
    chunks = min(in_run, 2)
    chunk = min(share_of_batch(config, full_workers) // in_run, GPU_CHUNK if has_gpus else CPU_CHUNK)
    chunk = max(1, min(chunk, _fitting(LEAST_STEPS * chunks * pair_seconds)))
    share = max(1, min(chunks * chunk, num_pairs // workers))
    num_steps = max(LEAST_STEPS, min(GPU_STEPS if has_gpus else CPU_STEPS, _fitting(share * pair_seconds)))
    batch_size = workers * share
    length = {"samples": batch_size * num_steps}
    changes = {
        **length,
        "num_workers": workers,
        "global_batch_size": batch_size,
        "lanes": workers,
        "accumulation": chunks,
        "log_every_steps": 1,
        "record_batches": False,
        "max_bad_pairs": 1.0,
        "max_failures": 0,
    }
    return config.model_copy(
        update={
            "training": training.model_copy(update=changes),
            "finetune": config.finetune.model_copy(update=length),
        }
    )


def training_fits(pair_seconds: float, start_seconds: float = 0.0) -> bool:
    """Return whether steps on one pair per worker are short enough to be measured, and so is the start of a worker."""
    return LEAST_STEPS * pair_seconds <= MOST_WORK_SECONDS and start_seconds <= MOST_START_SECONDS


def share_of_batch(config: Config, workers: int) -> int:
    """Return the pairs of a global batch per worker."""
    return config.training.global_batch_size // workers
