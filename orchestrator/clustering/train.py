"""Training the centroids: faiss in one task that holds the whole sample, or Lloyd's algorithm over many."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import numpy as np
import ray

from orchestrator.clustering.lloyd import train_in_tasks
from orchestrator.clustering.sample import MAX_GROUPS, read_sample
from orchestrator.config import Clustering
from orchestrator.data.step import Step
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.metering import Meter, current_meter
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups, nothing
from orchestrator.pruning.clusters import KMeansResult, Vectors, train, unit
from orchestrator.storage import files
from orchestrator.storage.npy import from_npy, to_npy

VERSION = 1
FILE = "centroids.npy"


def centroids_stage(step: Step, settings: Clustering, sample: Artifact) -> Stage:
    """Trains k unit centroids, float32 [k, d]."""
    made_from = settings.model_dump(exclude={"points_per_centroid"})
    artifact = Artifact.of(step.store_uri, "centroids", version=VERSION, sample=sample, **made_from)
    name = f"train centroids, {step.name}"

    def build(display: Display) -> None:
        started = time.monotonic()
        with display.stage(name, unit="centroids") as progress:
            if settings.trainer == "lloyd":
                trained = train_in_tasks(artifact, sample, settings)
            else:
                gpus = 1 if ray_cluster.num_gpus() else 0
                # not a whole node: a sweep's trial holds a hundredth of one, and would wait for itself
                share: dict[str, Any] = {
                    "num_cpus": 1 if gpus else max(1, ray_cluster.node_cpus() - 1),
                    "num_gpus": gpus,
                }
                # not in the placement group that a trial has for itself
                task = ray.remote(scheduling_strategy="DEFAULT", **share)(_train)
                trained = ray.get(task.remote(sample, settings, current_meter()))
            files.write(artifact.path(FILE), to_npy(trained.centroids))
            progress.update(settings.k)
        totals = {
            "k": settings.k,
            "sampled": sample.totals["sampled"],
            "objective": trained.objective,
            "restarts": trained.num_restarts,
        }
        artifact.publish(totals=totals, parts=[], seconds=time.monotonic() - started)

    def num_sampled(pairs: int) -> int:
        return min(pairs, settings.num_wanted)

    does = f"spherical k-means ({settings.trainer}), k = {settings.k:,}, {settings.num_iterations} iterations"
    return Stage(
        name=name,
        role=Role.TRAIN_CENTROIDS,
        step=step.name,
        does=does,
        artifact=artifact,
        build=build,
        scaling=CostScaling(
            work=lambda pairs: num_sampled(pairs) * settings.k * settings.num_iterations,
            stores=lambda _: settings.k,
            holds=num_sampled if settings.trainer == "faiss" else nothing,
            num_tasks=by_groups(MAX_GROUPS),
            one_task=settings.trainer == "faiss",
        ),
    )


def _train(sample: Artifact, settings: Clustering, meter: Meter) -> KMeansResult:
    return meter.around(partial(_trained_on, sample))(settings)


def _trained_on(sample: Artifact, settings: Clustering) -> KMeansResult:
    vectors = np.concatenate([unit(chunk) for chunk in read_sample(sample, range(len(sample.parts)))])
    return train(
        vectors,
        settings.k,
        seed=settings.seed,
        num_iterations=settings.num_iterations,
        num_threads=os.cpu_count() or 1,
    )


def read_centroids(centroids: Artifact) -> Vectors:
    """Unit centroids float32 [k, d]."""
    return from_npy(files.read(centroids.path(FILE)))
