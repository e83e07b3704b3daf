"""The nearest centroid of every pair that reaches a step, part by part in actors."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.clustering.train import read_centroids
from orchestrator.data.catalog import PartRows, part_rows, to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding, is_present
from orchestrator.engine import gpus, ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_parquet
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_part
from orchestrator.pruning.clusters import Nearest

logger = logging.getLogger(__name__)
VERSION = 2
NONE = -1
"""The cluster of a pair without an embedding."""


class Assigned(NamedTuple):
    """For the pairs of a part that reached the step, in row order: cluster int32 [n] (`NONE` for a pair without an
    embedding) and distance 1 - x.c float32 [n] (NaN for such a pair)."""

    cluster: NDArray[np.int32]
    distance: NDArray[np.float32]


def assign_stage(step: Step, k: int, centroids: Artifact) -> Stage:
    """The stage that makes one pass over the vectors, on GPUs if the cluster has any."""
    embedding = step.embedding
    assert embedding is not None
    artifact = Artifact.of(
        step.store_uri, "clusters", version=VERSION, embedding=embedding, keep=step.incoming, centroids=centroids
    )
    name = f"assign, {step.name}"

    return Stage(
        name=name,
        role=Role.ASSIGN_CLUSTERS,
        step=step.name,
        does="find every pair's cluster and its distance",
        artifact=artifact,
        build=BuildAssigned(artifact, step, centroids, name),
        scaling=CostScaling(work=lambda pairs: pairs * k, num_tasks=by_part),
    )


@dataclass(frozen=True)
class BuildAssigned:
    """Builds the clusters and distances of all pairs that reach the step."""

    artifact: Artifact
    step: Step
    centroids: Artifact
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Assigns in actors: one for each GPU or, without GPUs, one for each core."""
        assert self.step.embedding is not None
        num_gpus = ray_cluster.num_gpus()
        embedding, keep = Embedding(self.step.embedding), KeepList(self.step.incoming)
        PartsJob(
            self.artifact,
            part_rows(self.step.catalog),
            partial(AssignPart.load, embedding, keep, self.centroids),
            name=self.name,
            num_actors=num_gpus or self.step.num_actors or ray_cluster.num_cores(),
            num_gpus=1 if num_gpus else 0,
        ).build(display)
        totals = self.artifact.totals
        logger.info("%s: %d of %d pairs have an embedding", self.name, totals["embedded"], totals["reached"])
        return self.artifact


@dataclass(frozen=True)
class AssignPart:
    """The work on one part."""

    embedding: Embedding
    keep: KeepList
    nearest: Nearest

    @classmethod
    def load(cls, embedding: Embedding, keep: KeepList, centroids: Artifact) -> AssignPart:
        """Builds the index of the centroids: once in each actor, which has one thread, and a GPU if the
        cluster has any."""
        nearest = Nearest(read_centroids(centroids), num_threads=1, num_gpus=gpus.num_own())
        return cls(embedding, keep, nearest)

    def __call__(self, part: PartRows) -> PartResult:
        """The clusters and distances of the pairs that reached the step."""
        vectors, kept = self.embedding.image(part.index), self.keep.mask(part.index, part.num_rows)
        embedded = is_present(vectors)[kept]
        clusters, distances = np.full(len(embedded), NONE, np.int32), np.full(len(embedded), np.nan, np.float32)
        wanted = kept.copy()
        wanted[kept] = embedded
        # indexing copies the vectors: not needed where all of them are wanted
        clusters[embedded], distances[embedded] = self.nearest(vectors if wanted.all() else vectors[wanted])
        table = pa.table({"cluster": clusters, "distance": distances})
        numbers = {"rows": part.num_rows, "reached": len(embedded), "embedded": int(embedded.sum())}
        return PartResult({"parquet": to_parquet(table)}, numbers)


def read_assigned(assigned: Artifact, index: int) -> Assigned:
    """The clusters and distances of a part's pairs that reached the step."""
    table = read_parquet(part_path(assigned, index, "parquet"))
    return Assigned(table["cluster"].to_numpy(), table["distance"].to_numpy())
