"""Lloyd's algorithm for a sample too large for one machine: each actor holds a share of it, and after every iteration a
tree of tasks adds up their partial sums.

The sums are of fixed-point numbers, so the centroids do not depend on the number of actors. The state is written after
each iteration, and a killed training continues from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from orchestrator.clustering.sample import read_sample
from orchestrator.config import Clustering
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json, read_npy
from orchestrator.engine.metering import Meter, current_meter
from orchestrator.pruning.clusters import (
    FIXED_POINT,
    KMeansResult,
    Nearest,
    Vectors,
    next_centroids,
    sums_by_cluster,
    unit,
)
from orchestrator.storage import files
from orchestrator.storage.npy import to_npy

logger = logging.getLogger(__name__)
Partial = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""For some vectors, by cluster: sums int64 [k, d], sizes int64 [k] and summed distances int64 [k]. Sums and distances
are in fixed point."""


def train_in_tasks(artifact: Artifact, sample: Artifact, settings: Clustering) -> KMeansResult:
    """Train until the centroids no longer move, or for `num_iterations`."""
    held = _hold(sample)
    centroids = _start(held, sample, settings)
    objective: list[float] = []
    restarts, begin = 0, 0
    state = artifact.path("state.json")
    if files.exists(state):
        saved = read_json(state)
        objective, restarts, begin = saved["objective"], saved["restarts"], saved["iterations"]
        centroids = read_npy(artifact.path(f"state-{begin}.npy"))
        logger.info("k-means continues after iteration %d of %d", begin, settings.num_iterations)
    for iteration in range(begin, settings.num_iterations):
        sums, sizes, distances = _one_pass(held, centroids)
        moved, num_empty = next_centroids(sums, sizes, centroids)
        objective.append(1 - float(distances.sum()) / FIXED_POINT / float(sizes.sum()))
        restarts += num_empty
        is_stable = bool((moved == centroids).all())
        logger.info("iteration %d: mean cosine %.6f, %d empty clusters", iteration + 1, objective[-1], num_empty)
        centroids = moved
        # the new centroids, then the state that names them, and only then the old ones go: a state that can be read
        # names centroids that exist
        files.write(artifact.path(f"state-{iteration + 1}.npy"), to_npy(centroids))
        files.write_json(state, {"iterations": iteration + 1, "objective": objective, "restarts": restarts})
        files.remove(artifact.path(f"state-{iteration}.npy"))
        if is_stable:
            break
    return KMeansResult(centroids, objective, restarts)


# outside the placement group of a sweep's trial; an actor lost with its node restarts and reads its groups again
@ray.remote(scheduling_strategy="DEFAULT", max_restarts=-1, max_task_retries=-1)
class _Share:
    """Some groups of the sample, in memory."""

    def __init__(self, sample: Artifact, groups: Sequence[int], meter: Meter):
        self.meter = meter
        self.vectors = {group: unit(chunk) for group, chunk in zip(groups, read_sample(sample, groups), strict=True)}

    def rows(self, group: int, rows: NDArray[np.int64]) -> Vectors:
        return self.vectors[group][rows]

    def pass_over(self, centroids: Vectors) -> Partial:
        return self.meter.around(self._sums)(centroids)

    def _sums(self, centroids: Vectors) -> Partial:
        nearest, k = Nearest(centroids, num_threads=1), len(centroids)
        total = _zero(centroids)
        for vectors in self.vectors.values():
            clusters, distances = nearest(vectors)
            sizes = np.bincount(clusters, minlength=k)
            total = _add(total, (sums_by_cluster(vectors, clusters, k), sizes, sums_by_cluster(distances, clusters, k)))
        return total


def _zero(centroids: Vectors) -> Partial:
    k = len(centroids)
    return np.zeros(centroids.shape, np.int64), np.zeros(k, np.int64), np.zeros(k, np.int64)


def _add(one: Partial, other: Partial) -> Partial:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _hold(sample: Artifact) -> list[tuple[Sequence[int], ray.actor.ActorHandle]]:
    num_groups = len(sample.parts)
    shares = np.array_split(np.arange(num_groups), min(num_groups, ray_cluster.num_cpus()))
    start: Any = _Share.remote  # type: ignore[attr-defined]
    return [(share.tolist(), start(sample, share.tolist(), current_meter())) for share in shares]


def _start(
    held: Sequence[tuple[Sequence[int], ray.actor.ActorHandle]], sample: Artifact, settings: Clustering
) -> Vectors:
    ends = list(accumulate(part["sampled"] for part in sample.parts))
    drawn = np.sort(np.random.default_rng(settings.seed).choice(ends[-1], settings.k, replace=False))
    found: list[Any] = []
    for groups, actor in held:
        for group in groups:
            first = ends[group] - sample.parts[group]["sampled"]
            found.append(actor.rows.remote(group, drawn[(drawn >= first) & (drawn < ends[group])] - first))
    return np.concatenate(ray.get(found))


def _one_pass(held: Sequence[tuple[Sequence[int], ray.actor.ActorHandle]], centroids: Vectors) -> Partial:
    shared = ray.put(centroids)
    partials: list[Any] = [actor.pass_over.remote(shared) for _, actor in held]
    add = ray.remote(scheduling_strategy="DEFAULT", max_retries=-1)(_add)
    while len(partials) > 1:
        pairs = [add.remote(*partials[i : i + 2]) for i in range(0, len(partials) - 1, 2)]
        partials = pairs + partials[len(pairs) * 2 :]
    total: Partial = ray.get(partials[0])
    return total
