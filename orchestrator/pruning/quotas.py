"""How many pairs each cluster keeps: the quotas of SSP and of DBP.

SSP (self-supervised prototypes; Sorscher et al., arXiv 2206.14486), with a balance between clusters: of N pairs to
keep, each of the k clusters first keeps its min(int(N / k * balance), M_j) pairs farthest from the centroid, M_j being
its size; the farthest of all other pairs fill the rest of N. Both are searches for top-k thresholds
(`pruning.threshold`): one threshold per cluster for these quotas, then one over all other pairs. Balance 0 is the rule
of the paper.

DBP (density-based pruning, arXiv 2401.04578) gives complex clusters a larger share of the pairs kept. With centroids
c_j and M_j pairs x in cluster j, distances being 1 - cosine:

    d_intra(j) = mean of 1 - x.c_j,    d_inter(j) = mean of 1 - c_j.c_m over the nearest other centroids m
    C_j = d_inter(j) * d_intra(j),     P_j = exp(C_j / tau) / sum of exp(C_i / tau)

The quotas x_j minimise sum (x_j - P_j N)^2 subject to sum x_j = N and lb_j <= x_j <= M_j, where
lb_j = min(max(1, int(N / k * balance)), M_j). The problem is separable: x_j = clip(P_j N + shift, lb_j, M_j) with one
shift for all clusters, found exactly by bisection over the points where a cluster leaves or reaches a bound. Rounding
by largest remainder then makes the sum N. A cluster fills its quota with the pairs farthest from the centroid
(`pruning.order`).
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

BLOCK_ENTRIES = 1 << 24
"""Distances between centroids that are in memory at once."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def first_quotas(sizes: NDArray[np.int64], num_pairs: int, balance: float) -> NDArray[np.int64]:
    """How many pairs each cluster keeps first, whatever their distance: min(int(N / k * balance), M_j), int64 [k].

    Args:
        sizes: int64 [k], pairs in each cluster.
        num_pairs: N, the pairs to keep in all.
        balance: in [0, 1]; the share of an equal split that each cluster keeps at least.

    Raises:
        ValueError: the clusters have fewer than N pairs.
    """
    if num_pairs > sizes.sum():
        raise ValueError(
            f"the budget is {num_pairs:,} pairs, but the clusters have only {sizes.sum():,}; lower the budget"
        )
    return np.minimum(int(num_pairs / len(sizes) * balance), sizes)


def inter_distances(centroids: NDArray[np.float32], num_neighbours: int) -> Floats:
    """d_inter of each cluster, float64 [k].

    Args:
        centroids: [k, d] of unit norm. Equal ones are at distance 0: a cluster excludes itself by its index.
        num_neighbours: how many of the nearest other centroids count; all k - 1 if there are no more. A single cluster
            has none: its d_inter is 0, and its share is 1 all the same.
    """
    num_clusters = len(centroids)
    num_nearest = min(num_neighbours, num_clusters - 1)
    if not num_nearest:
        return np.zeros(num_clusters)
    # in float64, so that neither threads nor blocks change a quota by their rounding
    wide, result = centroids.astype(np.float64), np.empty(num_clusters)
    block = max(1, BLOCK_ENTRIES // num_clusters)
    for start in range(0, num_clusters, block):
        distances = 1 - wide[start : start + block] @ wide.T
        each = np.arange(len(distances))
        distances[each, start + each] = np.inf
        distances.partition(num_nearest - 1, axis=1)
        result[start : start + block] = distances[:, :num_nearest].mean(axis=1)
    return result


def complexities(intra: Floats, inter: Floats) -> Floats:
    """C of each cluster, float64 [k], from d_intra [k] (NaN where a cluster is empty) and d_inter [k]."""
    return inter * intra


def shares(complexity: Floats, sizes: Ints, tau: float) -> Floats:
    """P, float64 [k] of sum 1: the softmax of complexity / tau over the clusters that are not empty; others get 0."""
    occupied = sizes > 0
    logits = complexity[occupied] / tau
    weights = np.exp(logits - logits.max(initial=-np.inf))
    result = np.zeros(len(sizes))
    result[occupied] = weights / weights.sum()
    return result


def quotas(share: Floats, sizes: Ints, num_pairs: int, balance: float) -> Ints:
    """How many pairs each cluster keeps, int64 [k] of sum `num_pairs`: at least 1, and 0 for an empty cluster.

    Args:
        share: P, [k] of sum 1.
        sizes: M, int64 [k].
        num_pairs: N, the pairs to keep in all.
        balance: in [0, 1]; the share of an equal split that each cluster keeps at least.

    Raises:
        ValueError: the clusters have fewer than N pairs, or their least quotas sum to more than N.
    """
    least = least_quotas(sizes, num_pairs, balance)
    if num_pairs < least.sum():
        raise ValueError(
            f"the budget is {num_pairs:,} pairs, but every cluster that is not empty keeps at least one, together "
            f"{least.sum():,}; raise the budget or use fewer clusters"
        )
    return _rounded(real_quotas(share, least, sizes, num_pairs), num_pairs)


def least_quotas(sizes: Ints, num_pairs: int, balance: float) -> Ints:
    """lb, the least each cluster keeps, int64 [k]. Raises `ValueError` if the clusters have fewer pairs than N."""
    return np.maximum(first_quotas(sizes, num_pairs, balance), np.minimum(sizes, 1))


def real_quotas(share: Floats, least: Ints, sizes: Ints, num_pairs: int) -> Floats:
    """The quotas before rounding, float64 [k]; sum of `least` <= `num_pairs` <= sum of `sizes`."""
    wanted = share * num_pairs
    # the shifts at which a cluster leaves its lower bound and reaches its upper one: between two neighbouring ones the
    # sum is linear, with as many units of slope as there are clusters strictly inside their bounds
    leaves, reaches = least - wanted, sizes - wanted
    kinks = np.unique(np.concatenate([leaves, reaches]))

    def sum_at(shift: float) -> float:
        return float(np.clip(wanted + shift, least, sizes).sum())

    # the sum never falls as the shift grows: bisection finds the last kink at or below the wanted sum
    place = max(0, bisect.bisect_right(kinks, float(num_pairs), key=sum_at) - 1)
    shift = kinks[place]
    free = (leaves <= shift) & (shift < reaches)
    if free.any():
        # the rest of the way is linear: what the bounded clusters leave is shared evenly between the free ones
        bound = np.where(leaves > shift, least, sizes)[~free]
        shift = (num_pairs - bound.sum() - wanted[free].sum()) / np.count_nonzero(free)
    return np.clip(wanted + shift, least, sizes)


def _rounded(real: Floats, num_pairs: int) -> Ints:
    """Integers int64 [k] of sum `num_pairs`: the largest remainders are rounded up, the others down. Of equal
    remainders the earlier clusters are rounded up."""
    floor = np.floor(real)
    result = floor.astype(np.int64)
    order = np.argsort(floor - real, kind="stable")
    result[order[: num_pairs - int(result.sum())]] += 1
    return result
