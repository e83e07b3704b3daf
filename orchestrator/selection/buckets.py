"""How clusters are divided into buckets, and the comparisons in a bucket into tasks.

A bucket is a run of whole clusters. A task compares one bucket or, where clusters are huge, an even share of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.semdedup import TILE

PAIRS_PER_BUCKET = 2**18
# slices of buckets are read one by one, and there are as many as groups x buckets
MAX_BUCKETS = 2048
# products of two vectors that one task computes: a quarter of an hour of a core
COMPARISONS_PER_TASK = 2**36


@dataclass(frozen=True)
class Share:
    """What one task compares: one of `num_shares` even shares of the comparisons in a bucket."""

    bucket: int
    share: int = 0
    num_shares: int = 1

    def rows(self, clusters: NDArray[np.int32]) -> tuple[int, int]:
        """Where the share begins and ends among the pairs of a bucket, which are sorted by `clusters` int32 [n].

        The i-th pair of a cluster is compared with the i pairs before it, so `so_far` counts comparisons, and equal
        shares of it are unequal numbers of pairs. A share begins at a tile of its cluster (`pruning.semdedup`), so
        hardly any tile is computed twice."""
        firsts = np.searchsorted(clusters, clusters)
        so_far = np.cumsum(np.arange(len(clusters)) - firsts)

        def begin(share: int) -> int:
            if share == self.num_shares:
                return len(clusters)
            place = int(np.searchsorted(so_far, int(so_far[-1]) * share // self.num_shares))
            return place - int(place - firsts[place]) % TILE

        return begin(self.share), begin(self.share + 1)


def bucket_of_cluster(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each cluster, int64 [k], from the sizes int64 [k]."""
    # a cluster belongs to the bucket in which its first pair would lie if all pairs, sorted by cluster, were cut every
    # `per_bucket` pairs; `unique` numbers the buckets that have a cluster without gaps. So a bucket has whole clusters
    # in order, and is larger than `per_bucket` only by the rest of its last cluster
    per_bucket = max(PAIRS_PER_BUCKET, -(-int(sizes.sum()) // MAX_BUCKETS))
    return np.unique((np.cumsum(sizes) - sizes) // per_bucket, return_inverse=True)[1]


def even_shares(sizes: NDArray[np.int64]) -> list[Share]:
    """The tasks that compare all buckets, given the sizes int64 [k] of the clusters."""
    # a cluster of n pairs takes about n^2 / 2 comparisons
    comparisons = np.bincount(bucket_of_cluster(sizes), sizes.astype(np.float64) ** 2 / 2)
    counts = np.maximum(1, np.ceil(comparisons / COMPARISONS_PER_TASK)).astype(np.int64)
    return [Share(bucket, share, count) for bucket, count in enumerate(counts.tolist()) for share in range(count)]


def num_shares(pairs: int, k: int) -> int:
    """How many tasks there are if `k` clusters share the pairs evenly: for estimates."""
    buckets = min(k, MAX_BUCKETS, -(-pairs // PAIRS_PER_BUCKET))
    return max(1, buckets, pairs * pairs // (2 * k * COMPARISONS_PER_TASK))
