"""Training of the centroids: by faiss in one task that holds the whole sample, or by Lloyd's algorithm in many."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray

from orchestrator.clustering.lloyd import train_in_tasks
from orchestrator.clustering.sample import MAX_GROUPS, read_sample
from orchestrator.config import Clustering
from orchestrator.data.step import Step
from orchestrator.engine import gpus, ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_npy
from orchestrator.engine.console import Display
from orchestrator.engine.metering import Meter, current_meter
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups, nothing
from orchestrator.pruning.clusters import KMeansResult, Vectors, train, unit
from orchestrator.storage import files
from orchestrator.storage.npy import to_npy

logger = logging.getLogger(__name__)
VERSION = 1
LLOYD_VERSION = 2
FILE = "centroids.npy"


def centroids_stage(step: Step, settings: Clustering, sample: Artifact) -> Stage:
    """The stage that trains k unit centroids, float32 [k, d]."""
    made_from = settings.model_dump(exclude={"points_per_centroid"})
    version = LLOYD_VERSION if settings.trainer == "lloyd" else VERSION
    artifact = Artifact.of(step.store_uri, "centroids", version=version, sample=sample, **made_from)
    name = f"train centroids, {step.name}"

    def num_sampled(pairs: int) -> int:
        return min(pairs, settings.num_wanted)

    does = f"spherical k-means ({settings.trainer}), k = {settings.k:,}, {settings.num_iterations} iterations"
    return Stage(
        name=name,
        role=Role.TRAIN_CENTROIDS,
        step=step.name,
        does=does,
        artifact=artifact,
        build=BuildCentroids(artifact, sample, settings, name),
        scaling=CostScaling(
            work=lambda pairs: num_sampled(pairs) * settings.k * settings.num_iterations,
            stores=lambda _: settings.k,
            holds=num_sampled if settings.trainer == "faiss" else nothing,
            num_tasks=by_groups(MAX_GROUPS),
            one_task=settings.trainer == "faiss",
        ),
    )


@dataclass(frozen=True)
class BuildCentroids:
    """Builds the centroids from the sample."""

    artifact: Artifact
    sample: Artifact
    settings: Clustering
    name: str

    def __call__(self, display: Display) -> None:
        """Trains, and publishes the centroids and how training went."""
        settings, started = self.settings, time.monotonic()
        with display.stage(self.name, unit="centroids") as progress:
            if settings.trainer == "lloyd":
                trained = train_in_tasks(self.artifact, self.sample, settings)
            else:
                trained = _train_in_one_task(self.sample, settings)
            files.write(self.artifact.path(FILE), to_npy(trained.centroids))
            progress.update(settings.k)
        totals = {
            "k": settings.k,
            "sampled": self.sample.totals["sampled"],
            "objective": trained.objective,
            "restarts": trained.num_restarts,
        }
        seconds = time.monotonic() - started
        self.artifact.publish(totals=totals, parts=[], seconds=seconds)
        counts = (settings.k, totals["sampled"], seconds, trained.num_restarts)
        logger.info("%s: %d centroids of %d vectors in %.1f s, %d restarts of empty clusters", self.name, *counts)


def _train_in_one_task(sample: Artifact, settings: Clustering) -> KMeansResult:
    num_gpus = gpus.num_of_node()
    # one core of the node stays free: a trial of a sweep holds a hundredth of one, so a task that needs them all would
    # never start
    share: dict[str, Any] = {"num_cpus": 1 if num_gpus else max(1, ray_cluster.node_cpus() - 1), "num_gpus": num_gpus}
    # outside the placement group of a sweep's trial, which has no room for the task
    task = ray.remote(scheduling_strategy="DEFAULT", **share)(_train)
    trained: KMeansResult = ray.get(task.remote(sample, settings, current_meter()))
    return trained


def _train(sample: Artifact, settings: Clustering, meter: Meter) -> KMeansResult:
    return meter.around(partial(_train_whole, sample))(settings)


def _train_whole(sample: Artifact, settings: Clustering) -> KMeansResult:
    vectors = np.concatenate([unit(chunk) for chunk in read_sample(sample, range(len(sample.parts)))])
    return train(
        vectors,
        settings.k,
        seed=settings.seed,
        num_iterations=settings.num_iterations,
        num_threads=os.cpu_count() or 1,
        num_gpus=gpus.num_own(),
    )


def read_centroids(centroids: Artifact) -> Vectors:
    """Unit centroids float32 [k, d]."""
    return read_npy(centroids.path(FILE))
