"""Measure what it costs that near-ties do not depend on the batch: ours beside the plain products, on one core.

The plain way is faiss' nearest centroid with row-wise distances, and SemDeDup's tiles with the first largest product
of each row. Time is processor time, the least of `--repeats`.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/bench_exact.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.clusters import CACHED_ROWS, CPU_CHUNK_ROWS, Nearest, unit
from orchestrator.pruning.semdedup import TILE, max_earlier_similarity

DIM, NUM_VECTORS, NUM_CENTROIDS, CLUSTER_SIZES = 512, 100_000, 500, (1_000, 10_000)
Vectors = NDArray[np.float32]


def plain_assignment(centroids: Vectors, vectors: NDArray[np.float16]) -> NDArray[np.int64]:
    """Return the nearest centroids as faiss finds them, and compute the distances row by row."""
    index, found = faiss.IndexFlatIP(DIM), np.empty(len(vectors), np.int64)
    index.add(centroids)
    for start in range(0, len(vectors), CPU_CHUNK_ROWS):
        chunk = vectors[start : start + CPU_CHUNK_ROWS].astype(np.float32)
        found[start : start + CPU_CHUNK_ROWS] = index.search(chunk, 1)[1][:, 0]
        for row in range(0, len(chunk), CACHED_ROWS):
            rows = slice(row, row + CACHED_ROWS)
            np.einsum("nd,nd->n", chunk[rows], centroids[found[start : start + CPU_CHUNK_ROWS][rows]])
        np.sqrt(np.einsum("nd,nd->n", chunk, chunk))
    return found


def plain_similarity(vectors: Vectors) -> Vectors:
    """Return the largest product with an earlier vector, tile by tile, and the float64 product of that pair."""
    result = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), TILE):
        later = vectors[start : start + TILE]
        largest, nearest = np.full(len(later), -np.inf, np.float32), np.zeros(len(later), np.int64)
        for column in range(0, start + 1, TILE):
            products = later @ (later if column == start else vectors[column : column + TILE]).T
            if column == start:
                products[~np.tri(len(later), k=-1, dtype=bool)] = -np.inf
            place = products.argmax(axis=1)
            found = np.take_along_axis(products, place[:, None], axis=1)[:, 0]
            better = found > largest
            largest[better], nearest[better] = found[better], column + place[better]
        result[start : start + TILE] = np.einsum("nd,nd->n", later, vectors[nearest], dtype=np.float64)
    return result


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the least processor time of several calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print a Markdown row for each task: seconds of the plain way, of ours, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((NUM_VECTORS, DIM), np.float32))
    centroids = vectors[:: NUM_VECTORS // NUM_CENTROIDS].copy()
    # near-ties: each centroid has a twin next to it
    twins = unit(np.repeat(centroids[::2], 2, axis=0) + 1e-6 * rng.standard_normal((NUM_CENTROIDS, DIM), np.float32))
    half = vectors.astype(np.float16)
    tasks: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        f"assignment of {NUM_VECTORS:,}, k = {NUM_CENTROIDS}{what}": (
            partial(plain_assignment, some, half),
            partial(Nearest(some, num_threads=1), half),
        )
        for what, some in (("", centroids), (", all centroids in near-ties of two", twins))
    }
    tasks |= {
        f"SemDeDup, a cluster of {size:,}": (
            partial(plain_similarity, vectors[:size]),
            partial(max_earlier_similarity, vectors[:size]),
        )
        for size in CLUSTER_SIZES
    }
    for name, (plain, ours) in tasks.items():
        one, other = seconds(plain, repeats), seconds(ours, repeats)
        print(f"| {name} | {one:.3f} s | {other:.3f} s | {other / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
