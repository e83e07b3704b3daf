"""Measure DBP's arithmetic on clusters: the time of d_inter and of quotas by number of clusters.

    python tests/benchmarks/bench_density.py

Cluster sizes are log-normal, with a few empty clusters. Complexities are uniform, tau is 0.1, and 40% of the pairs are
kept. The script checks that the quotas add up to the budget. It reports wall time: the best of 5 rounds for quotas, and
one round for d_inter (centroids of 512 dimensions, 20 neighbours).
"""

from __future__ import annotations

import time

import numpy as np

from orchestrator.pruning.quotas import inter_distances, quotas, shares

KEEP_FRACTION = 0.4
QUOTAS_OF = [500, 10_000, 100_000]
INTER_OF = [500, 10_000]
DIM = 512


def quota_seconds(num_clusters: int) -> tuple[int, float]:
    """Return the number of pairs of the pool and the best time of 5 rounds, in seconds."""
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(np.log(400e6 / num_clusters), 1, num_clusters).astype(np.int64)
    sizes[rng.integers(0, num_clusters, num_clusters // 100)] = 0
    share = shares(rng.random(num_clusters) * 0.5, sizes, 0.1)
    num_pairs = int(sizes.sum() * KEEP_FRACTION)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        found = quotas(share, sizes, num_pairs, 0.0)
        times.append(time.perf_counter() - start)
        assert found.sum() == num_pairs
    return int(sizes.sum()), min(times)


def inter_seconds(num_clusters: int) -> float:
    """Return the seconds that the distances between centroids take."""
    vectors = np.random.default_rng(0).standard_normal((num_clusters, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    start = time.perf_counter()
    inter_distances(vectors, 20)
    return time.perf_counter() - start


def main() -> None:
    """Print one Markdown row per number of clusters."""
    print("| clusters | pairs | quotas | d_inter |")
    print("|---|---|---|---|")
    for num_clusters in QUOTAS_OF:
        num_pairs, seconds = quota_seconds(num_clusters)
        inter = f"{inter_seconds(num_clusters):.2f} s" if num_clusters in INTER_OF else "-"
        print(f"| {num_clusters:,} | {num_pairs / 1e6:,.0f} M | {seconds * 1000:.1f} ms | {inter} |")


if __name__ == "__main__":
    main()
