"""Every pair that reaches a step to its nearest centroid, part by part in actors."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.clustering.train import read_centroids
from orchestrator.data.catalog import PartRows, part_rows, to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding, is_present
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_part
from orchestrator.pruning.clusters import Nearest
from orchestrator.storage import files

VERSION = 1
NONE = -1
"""The cluster of a pair without an embedding."""


class Assigned(NamedTuple):
    """Of a part's pairs that reached the step, in row order: cluster int32 [n] (`NONE`: no embedding) and distance
    1 - x.c float32 [n] (NaN there)."""

    cluster: NDArray[np.int32]
    distance: NDArray[np.float32]


def assign_stage(step: Step, k: int, centroids: Artifact) -> Stage:
    """One pass over the embeddings, on GPUs where there are any."""
    embedding = step.embedding
    assert embedding is not None
    artifact = Artifact.of(
        step.store_uri, "clusters", version=VERSION, embedding=embedding, keep=step.incoming, centroids=centroids
    )
    name = f"assign, {step.name}"

    def build(display: Display) -> Artifact:
        gpus = ray_cluster.num_gpus()
        return build_parts(
            artifact,
            part_rows(step.catalog),
            partial(_work, Embedding(embedding), KeepList(step.incoming), centroids),
            display=display,
            name=name,
            num_actors=gpus or step.num_actors or ray_cluster.num_cores(),
            num_gpus=1 if gpus else 0,
        )

    return Stage(
        name=name,
        role=Role.ASSIGN_CLUSTERS,
        step=step.name,
        does="find every pair's cluster and its distance",
        artifact=artifact,
        build=build,
        scaling=CostScaling(work=lambda pairs: pairs * k, num_tasks=by_part),
    )


def _work(embedding: Embedding, keep: KeepList, centroids: Artifact) -> Work:
    nearest = Nearest(read_centroids(centroids), num_threads=1)

    def work(part: PartRows) -> PartResult:
        vectors, kept = embedding.image(part.index), keep.mask(part.index, part.num_rows)
        embedded = is_present(vectors)[kept]
        clusters, distances = np.full(len(embedded), NONE, np.int32), np.full(len(embedded), np.nan, np.float32)
        wanted = kept.copy()
        wanted[kept] = embedded
        # a copy only where some are left out
        clusters[embedded], distances[embedded] = nearest(vectors if wanted.all() else vectors[wanted])
        table = pa.table({"cluster": clusters, "distance": distances})
        numbers = {"rows": part.num_rows, "reached": len(embedded), "embedded": int(embedded.sum())}
        return PartResult({"parquet": to_parquet(table)}, numbers)

    return work


def read_assigned(assigned: Artifact, index: int) -> Assigned:
    """The clusters and distances of a part's pairs that reached the step."""
    table = pq.read_table(pa.BufferReader(files.read(part_path(assigned, index, "parquet"))))
    return Assigned(table["cluster"].to_numpy(), table["distance"].to_numpy())
