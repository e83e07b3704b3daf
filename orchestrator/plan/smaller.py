"""A run's configuration cut down to what a probe can do in a minute, with the same work for each pair."""

from __future__ import annotations

from typing import Any

from orchestrator import cluster
from orchestrator.config import (
    AllStep,
    Budgeted,
    ClusterConfig,
    Clustering,
    Config,
    EvaluationConfig,
    KeepListStep,
    Limits,
    SelectionConfig,
    StepConfig,
    TrackingConfig,
)
from orchestrator.config.embedding import EncoderConfig

# of each worker's batch, and steps of it: enough that a GPU is busy; a CPU is busy with less
GPU_BATCH, CPU_BATCH = 2048, 64
GPU_STEPS, CPU_STEPS = 40, 8
# of each encoding actor; the first ones fill the pipeline
GPU_BATCHES, CPU_BATCHES = 8, 2
CPU_ENCODER_BATCH = 32
MAX_ITERATIONS, PAIRS_PER_CLUSTER = 4, 8


def cluster_of(config: Config) -> ClusterConfig:
    """The nodes that are there; of an autoscaler's GPUs a first one."""
    grows = config.cluster.scales_to_gpus
    return config.cluster.model_copy(update={"scales_to_cpus": None, "scales_to_gpus": 1 if grows else None})


def base(config: Config, place: str) -> Config:
    """The run in a store of its own, without trackers and evaluation."""
    nowhere = TrackingConfig(tensorboard=False)
    limits = Limits(max_broken_shards=1, max_broken_pairs=1)
    source = config.source.model_copy(update={"limits": limits})
    changes = {"store": place, "source": source, "tracking": nowhere, "evaluation": EvaluationConfig()}
    return config.model_copy(update=changes)


def selection_of(config: Config, num_pairs: int, pool_share: float) -> Config:
    """Budgets in pairs by the share of the pool that is probed, and no more clusters than a few pairs each allow."""
    left, settings = float(num_pairs), dict(config.selection.settings)
    for name in config.selection.steps:
        settings[name] = step = _step(settings[name], max(2, int(left)), pool_share)
        if isinstance(step, Budgeted):
            left = step.keep_pairs or left * step.keep_fraction
    selection = SelectionConfig.model_construct(steps=config.selection.steps, settings=settings)
    return config.model_copy(update={"selection": selection})


def _step(step: StepConfig, num_pairs: int, pool_share: float) -> StepConfig:
    if isinstance(step, KeepListStep):
        return AllStep()
    changes: dict[str, Any] = {}
    clustering: Clustering | None = getattr(step, "clustering", None)
    if clustering is not None:
        smaller = {
            "k": min(clustering.k, max(2, num_pairs // PAIRS_PER_CLUSTER)),
            "num_iterations": min(clustering.num_iterations, MAX_ITERATIONS),
        }
        changes["clustering"] = clustering.model_copy(update=smaller)
    if isinstance(step, Budgeted) and step.keep_pairs is not None:
        changes["keep_pairs"] = min(num_pairs, max(1, int(step.keep_pairs * pool_share)))
    return step.model_copy(update=changes)


def encoder_of(settings: EncoderConfig) -> EncoderConfig:
    """On CPUs an encoder takes small batches; broken pairs are the run's to judge."""
    batch_size = settings.batch_size if cluster.num_gpus() else min(settings.batch_size, CPU_ENCODER_BATCH)
    return settings.model_copy(update={"batch_size": batch_size, "max_bad_pairs": 1.0})


def rows_to_encode(settings: EncoderConfig, num_actors: int, num_parts: int) -> int:
    """Of each part, so that every actor has a few batches."""
    batches = num_actors * (GPU_BATCHES if cluster.num_gpus() else CPU_BATCHES)
    return -(-batches * settings.batch_size // num_parts)


def training_of(config: Config, num_kept: int, full_workers: int) -> Config:
    """A few steps of the workers that the nodes have room for, each with the batch that it will have."""
    training, has_gpus = config.training, cluster.num_gpus() > 0
    workers = min(full_workers, cluster.num_train_workers(None, lanes=None))
    chunk = training.global_batch_size // (full_workers * training.accumulation)
    per_worker = max(1, min(chunk, GPU_BATCH if has_gpus else CPU_BATCH, num_kept // workers))
    batch_size = per_worker * workers
    length = {"samples": batch_size * (GPU_STEPS if has_gpus else CPU_STEPS)}
    changes = {
        **length,
        "num_workers": workers,
        "global_batch_size": batch_size,
        "lanes": workers,
        "accumulation": 1,
        "log_every_steps": 1,
        "evaluate_every_steps": None,
        "keep_model": "last",
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
