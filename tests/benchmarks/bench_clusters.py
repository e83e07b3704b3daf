"""k-means and assignment against raw faiss on the same vectors, one after the other in one run.

Raw: the float16 files are read and widened, `faiss.Kmeans` is trained on the same sample with the same settings and
threads, and its index searched file by file. Ours: the stages (Ray tasks and actors, unit norms, distances summed row
by row, columns written), and the functions below them alone.

    python tests/benchmarks/bench_clusters.py --pairs 300000
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
from synthetic import DISPLAY, sizes_of, synthetic_step, write_embedding

from orchestrator.clustering.sample import read_sample
from orchestrator.clustering.train import read_centroids
from orchestrator.config import Clustering, SspStep
from orchestrator.embedding.vectors import Embedding
from orchestrator.pruning.clusters import Nearest, train, unit
from orchestrator.selection.ssp import stages

DIM, PAIRS_PER_PART, THREADS = 512, 10_000, os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--k", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clustering = Clustering(k=arguments.k, num_iterations=arguments.iterations)
        settings = SspStep(embedding="none", clustering=clustering)
        step = synthetic_step(folder, settings, sizes_of(arguments.pairs, PAIRS_PER_PART), DIM)
        write_embedding(step, DIM, num_blobs=arguments.k)
        sample, trained, assign, *_ = stages(step)
        sample.build(DISPLAY)
        num_parts = len(step.catalog.rows_per_part)
        assert step.embedding is not None
        embedding = Embedding(step.embedding)
        parts = [partial(embedding.image, index) for index in range(num_parts)]

        def vectors() -> np.ndarray:
            return np.concatenate(list(read_sample(sample.artifact, range(len(sample.artifact.parts)))))

        num_sampled = len(vectors())
        settings_of = {"seed": 1234, "num_iterations": arguments.iterations, "num_threads": THREADS}
        raw = timed(lambda: raw_kmeans(vectors().astype(np.float32), arguments.k, arguments.iterations))
        ours = timed(lambda: train(unit(vectors()), arguments.k, **settings_of))
        stage = timed(lambda: trained.build(DISPLAY))
        tell("k-means", num_sampled * arguments.iterations, raw, ours, stage)
        centroids = read_centroids(trained.artifact)
        raw = timed(lambda: raw_search(centroids, parts))
        ours = timed(lambda: search(Nearest(centroids, num_threads=THREADS), parts))
        stage = timed(lambda: assign.build(DISPLAY))
        tell("assignment", arguments.pairs, raw, ours, stage)


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def raw_kmeans(sample: np.ndarray, k: int, num_iterations: int) -> None:
    """faiss as its documentation calls it, on all of the sample."""
    faiss.omp_set_num_threads(THREADS)
    settings = {"niter": num_iterations, "seed": 1234, "spherical": True, "max_points_per_centroid": len(sample)}
    faiss.Kmeans(sample.shape[1], k, **settings).train(sample)


def raw_search(centroids: np.ndarray, parts: list[Callable[[], np.ndarray]]) -> None:
    """Reads and searches, file by file."""
    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    for part in parts:
        index.search(part().astype(np.float32), 1)


def search(nearest: Nearest, parts: list[Callable[[], np.ndarray]]) -> None:
    """The same by our function."""
    for part in parts:
        nearest(part())


def tell(what: str, num_vectors: int, raw: float, ours: float, stage: float) -> None:
    """A row: vectors/s of raw faiss, of the function and of the stage, with their ratios."""
    print(
        f"| {what} | {num_vectors / raw:,.0f} | {num_vectors / ours:,.0f} | {raw / ours:.2f} "
        f"| {num_vectors / stage:,.0f} | {raw / stage:.2f} | {stage - ours:.1f} s |"
    )


if __name__ == "__main__":
    main()
