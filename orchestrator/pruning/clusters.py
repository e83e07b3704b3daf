"""Spherical k-means of unit vectors: x belongs to the unit centroid c with the largest x.c, at distance 1 - x.c.

Training is by faiss or, for a sample too large for one machine, by Lloyd's algorithm from partial sums:

    c_j = s_j / |s_j|,   s_j = sum of the vectors of cluster j

Sums are of fixed-point numbers, so they do not depend on the parts or on their order. Neither does the nearest centroid
of a vector: where two are nearly as close, `pruning.exact` decides, and of equally close ones the first wins."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.exact import first_equal, largest_products, rounding

FIXED_POINT = 2**30
"""The scale of distances and coordinates, which are at most 2 in size: int64 has room for the sum of 4 billion of them
in steps of 1e-9."""
SPLIT = 1 / 1024
"""How far the two halves of a split cluster move apart, relative to each coordinate."""
# rows for one search: on a GPU, and on a core
CHUNK_ROWS = 65_536
CPU_CHUNK_ROWS = 4096
# rows for one pass over their centroids' vectors, which then fit the cache of a core
CACHED_ROWS = 256

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class KMeansResult:
    """Unit centroids float32 [k, d], the mean of x.c after each iteration, and how many times an empty cluster was
    restarted."""

    centroids: Vectors
    objective: list[float]
    num_restarts: int


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """The vectors scaled to norm 1, float32 [n, d]. The norm of a unit vector stored as float16 is 1 to 3 digits
    only."""
    wide = np.ascontiguousarray(vectors, np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def train(
    sample: Vectors,
    k: int,
    *,
    seed: int,
    num_iterations: int,
    num_threads: int,
    num_gpus: int = 0,
    start: Vectors | None = None,
) -> KMeansResult:
    """Train spherical k-means by faiss on a sample of unit vectors [n, d], n >= k; on the first `num_gpus` GPUs.

    `start` are the first centroids [k, d]; None: k random vectors of the sample. The result depends on `num_threads`,
    as faiss then adds numbers in another order."""
    assert len(sample) >= k, (len(sample), k)
    faiss.omp_set_num_threads(num_threads)
    kmeans = faiss.Kmeans(
        sample.shape[1],
        k,
        niter=num_iterations,
        seed=seed,
        spherical=True,
        # the default would silently use at most 256 points per centroid: the caller chooses the sample
        max_points_per_centroid=len(sample),
        min_points_per_centroid=1,
        gpu=_usable_gpus(num_gpus),
    )
    kmeans.train(sample, init_centroids=start)
    assert kmeans.iteration_stats is not None
    assert kmeans.centroids is not None
    assert kmeans.obj is not None
    restarts = sum(int(iteration["nsplit"]) for iteration in kmeans.iteration_stats)
    return KMeansResult(kmeans.centroids.copy(), [float(value) / len(sample) for value in kmeans.obj], restarts)


def _usable_gpus(num_gpus: int) -> int:
    # not every visible GPU: others may belong to other processes. faiss for CPUs uses none
    return min(num_gpus, faiss.get_num_gpus())


class Nearest:
    """Finds the nearest centroid, on the first `num_gpus` GPUs. Not thread-safe: calls share a buffer."""

    def __init__(self, centroids: Vectors, *, num_threads: int, num_gpus: int = 0) -> None:
        faiss.omp_set_num_threads(num_threads)
        # equal centroids, which clusters that stay empty have, are one: its first place
        same = first_equal(centroids.__getitem__, len(centroids), CACHED_ROWS)
        self.places = np.flatnonzero(same == np.arange(len(centroids)))
        self.centroids = centroids if len(self.places) == len(centroids) else centroids[self.places]
        index = faiss.IndexFlatIP(centroids.shape[1])
        index.add(self.centroids)
        gpus = _usable_gpus(num_gpus)
        self.index = faiss.index_cpu_to_all_gpus(index, ngpu=gpus) if gpus else index
        # one buffer for all chunks: page faults of fresh memory are a tenth of the time at k = 500
        self.wide = np.empty((CHUNK_ROWS if gpus else CPU_CHUNK_ROWS, centroids.shape[1]), np.float32)

    def __call__(self, vectors: NDArray[np.floating]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Cluster int32 [n] and distance float32 [n] of vectors [n, d] of any norm but 0.

        The distance is summed row by row. That of the search is not used: its rounding depends on the other rows."""
        clusters, distances = np.empty(len(vectors), np.int32), np.empty(len(vectors), np.float32)
        for begin in range(0, len(vectors), len(self.wide)):
            rows = slice(begin, begin + len(self.wide))
            chunk = self.wide[: len(vectors[rows])]
            np.copyto(chunk, vectors[rows])
            norms = np.sqrt(np.einsum("nd,nd->n", chunk, chunk))
            found = self._nearest(chunk, norms)
            clusters[rows] = self.places[found]
            distances[rows] = 1 - self._along(chunk, found) / norms
        return clusters, distances

    def _nearest(self, vectors: Vectors, norms: Vectors) -> NDArray[np.int64]:
        num_centroids, dim = self.centroids.shape
        products, found = self.index.search(vectors, min(2, num_centroids))
        nearest = found[:, 0]
        if num_centroids > 1:
            unsure = np.flatnonzero(products[:, 0] - products[:, 1] <= rounding(dim, np.float32) * norms)
            among = np.full(len(unsure), num_centroids)
            nearest[unsure] = largest_products(vectors[unsure], self.centroids.__getitem__, among, CPU_CHUNK_ROWS)
        return nearest

    def _along(self, vectors: Vectors, found: NDArray[np.int64]) -> Vectors:
        along = np.empty(len(vectors), np.float32)
        for begin in range(0, len(vectors), CACHED_ROWS):
            rows = slice(begin, begin + CACHED_ROWS)
            along[rows] = np.einsum("nd,nd->n", vectors[rows], self.centroids[found[rows]])
        return along


def fixed_point(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Numbers of size 2 at most as integers: their sum does not depend on the order."""
    return np.rint(values.astype(np.float64) * FIXED_POINT).astype(np.int64)


def sums_by_cluster(values: NDArray[np.floating], clusters: NDArray[np.integer], k: int) -> NDArray[np.int64]:
    """Fixed-point sums int64 [k] or [k, d] of values [n] or [n, d] over each cluster."""
    sums = np.zeros((k, *values.shape[1:]), np.int64)
    for begin in range(0, len(values), CHUNK_ROWS):
        members = clusters[begin : begin + CHUNK_ROWS]
        order = np.argsort(members, kind="stable")
        present, firsts = np.unique(members[order], return_index=True)
        sums[present] += np.add.reduceat(fixed_point(values[begin : begin + CHUNK_ROWS][order]), firsts, axis=0)
    return sums


def next_centroids(sums: NDArray[np.int64], sizes: NDArray[np.int64], previous: Vectors) -> tuple[Vectors, int]:
    """Lloyd's step: unit centroids float32 [k, d] from the fixed-point sums [k, d] and sizes [k] of the clusters, and
    how many clusters were empty. An empty one restarts next to the largest and takes half of it."""
    directions = sums.astype(np.float64)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    still = lengths[:, 0] == 0
    centroids = np.where(still[:, None], previous, directions / np.where(lengths, lengths, 1)).astype(np.float32)
    # as faiss splits: two copies of the largest cluster's centroid, moved apart by alternating signs. `left` counts the
    # pairs as if the split were even, so several empty clusters do not all split the same one
    left = sizes.copy()
    for empty in np.flatnonzero(sizes == 0):
        largest = int(np.argmax(left))
        signs = np.where(np.arange(centroids.shape[1]) % 2, SPLIT, -SPLIT).astype(np.float32)
        centroids[empty] = centroids[largest] * (1 + signs)
        centroids[largest] *= 1 - signs
        left[empty] = left[largest] // 2
        left[largest] -= left[empty]
    return unit(centroids), int((sizes == 0).sum())
