"""Compare k-means and assignment with raw faiss on the same vectors, one after the other in one run.

Raw faiss reads the float16 files and converts them to float32. It trains `faiss.Kmeans` on the same sample, with the
same settings and threads, and searches the index file by file. Ours runs the stages, with Ray tasks and actors, unit
norms, distances summed row by row, and columns written to the store. Each runs on a small and a large task. The
difference of the two is the steady state; the rest of a stage's time is its start-up.

    python tests/benchmarks/bench_clusters.py --pairs 100000 700000 --iterations 5 40
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

from orchestrator.clustering.sample import read_sample
from orchestrator.clustering.train import read_centroids
from orchestrator.config import Clustering, SspStep
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.selection.ssp import stages
from tests.benchmarks.synthetic import DISPLAY, sizes_of, synthetic_step, write_embedding

DIM, PAIRS_PER_PART, THREADS = 512, 10_000, os.cpu_count() or 1


def main() -> None:
    """Print a Markdown row for each task: vectors/s of raw faiss and of ours, the ratio, the start-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=int, nargs=2, default=[100_000, 700_000], help="pairs to assign: the small and the large task"
    )
    parser.add_argument(
        "--iterations", type=int, nargs=2, default=[5, 40], help="k-means iterations: the small and the large task"
    )
    parser.add_argument("--k", type=int, default=500)
    arguments = parser.parse_args()
    few, many = zip(arguments.pairs, arguments.iterations, strict=True)
    first, second = measure(arguments.k, *few), measure(arguments.k, *many)
    for what in first:
        raw, ours = ((second[what][i] - first[what][i]) / (second[what][0] - first[what][0]) for i in (1, 2))
        start_up = first[what][2] - first[what][0] * ours
        print(f"| {what} | {1 / raw:,.0f} | {1 / ours:,.0f} | {raw / ours:.2f} | {start_up:.1f} s |")


def measure(k: int, num_pairs: int, num_iterations: int) -> dict[str, tuple[int, float, float]]:
    """Return, by task, the number of vectors processed, the seconds of raw faiss and the seconds of the stage."""
    with tempfile.TemporaryDirectory() as folder:
        clustering = Clustering(k=k, num_iterations=num_iterations)
        step = synthetic_step(
            folder, SspStep(embedding="none", clustering=clustering), sizes_of(num_pairs, PAIRS_PER_PART), DIM
        )
        write_embedding(step, DIM, num_blobs=k)
        sample, trained, assign, *_ = stages(step)
        sample.build(DISPLAY)
        assert step.embedding is not None
        parts = [partial(Embedding(step.embedding).image, index) for index in range(len(step.catalog.rows_per_part))]
        num_sampled = sample.artifact.totals["sampled"]
        raw_training = timed(lambda: raw_kmeans(sample.artifact, k, num_iterations))
        training = timed(lambda: trained.build(DISPLAY))
        centroids = read_centroids(trained.artifact)
        raw_assignment = timed(lambda: raw_search(centroids, parts))
        assignment = timed(lambda: assign.build(DISPLAY))
        return {
            "k-means": (num_sampled * num_iterations, raw_training, training),
            "assignment": (num_pairs, raw_assignment, assignment),
        }


def timed(run: Callable[[], object]) -> float:
    """Return the wall seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def raw_kmeans(sample: Artifact, k: int, num_iterations: int) -> None:
    """Train faiss as its documentation does, on the whole sample."""
    faiss.omp_set_num_threads(THREADS)
    vectors = np.concatenate(list(read_sample(sample, range(len(sample.parts))))).astype(np.float32)
    settings = {"niter": num_iterations, "seed": 1234, "spherical": True, "max_points_per_centroid": len(vectors)}
    faiss.Kmeans(vectors.shape[1], k, **settings).train(vectors)


def raw_search(centroids: np.ndarray, parts: list[Callable[[], np.ndarray]]) -> None:
    """Read and search the parts, file by file."""
    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    for part in parts:
        index.search(part().astype(np.float32), 1)


if __name__ == "__main__":
    main()
