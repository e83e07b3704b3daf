"""SSP: the first quotas, and the two thresholds compared with a literal loop."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.pruning.quotas import first_quotas
from orchestrator.pruning.threshold import sortable
from tests.support.cuts import cut_parts

Ints = NDArray[np.int64]


def test_first_quotas() -> None:
    sizes = np.array([10, 0, 2, 100])
    assert first_quotas(sizes, 50, 0.0).tolist() == [0, 0, 0, 0]
    assert first_quotas(sizes, 50, 0.5).tolist() == [6, 0, 2, 6]
    assert first_quotas(sizes, 50, 1.0).tolist() == [10, 0, 2, 12]
    with pytest.raises(ValueError, match="the budget is 113 pairs, but the clusters have only 112"):
        first_quotas(sizes, 113, 0.5)


def slow_ssp(distances: NDArray[np.float32], clusters: Ints, num_clusters: int, num_pairs: int, balance: float) -> Ints:
    """Return the kept positions, ascending, by a literal loop over the definition."""
    farthest_first = sorted(range(len(distances)), key=lambda position: (-distances[position], position))
    kept: list[int] = []
    for cluster in range(num_clusters):
        members = [position for position in farthest_first if clusters[position] == cluster]
        kept += members[: int(num_pairs / num_clusters * balance)]
    for position in farthest_first:
        if len(kept) < num_pairs and position not in kept:
            kept.append(position)
    return np.sort(kept).astype(np.int64)


def ssp_by_cuts(
    distances: NDArray[np.float32], clusters: Ints, num_clusters: int, num_pairs: int, balance: float, num_parts: int
) -> Ints:
    """Keep the first quota of each cluster, then the highest remaining keys of all clusters, over parts."""
    sizes = np.bincount(clusters, minlength=num_clusters)
    keys = np.array_split(sortable(distances), num_parts)
    first = cut_parts(keys, np.array_split(clusters, num_parts), first_quotas(sizes, num_pairs, balance))
    left = [part[~given] for part, given in zip(keys, np.array_split(first, num_parts), strict=True)]
    rest = np.array([num_pairs - first.sum()])
    filled = cut_parts(left, [np.zeros(len(part), np.int64) for part in left], rest)
    kept = first.copy()
    kept[np.flatnonzero(~first)[filled]] = True
    return np.flatnonzero(kept)


@pytest.mark.parametrize("num_parts", [1, 7])
@pytest.mark.parametrize("balance", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("num_clusters", [1, 10, 400])
@pytest.mark.parametrize("crowded", [False, True], ids=["even", "one cluster holds most"])
def test_two_thresholds_equal_the_definition_of_ssp(
    crowded: bool, num_clusters: int, balance: float, num_parts: int
) -> None:
    """Distances have ties. With 400 clusters for 300 pairs, many clusters are empty."""
    rng = np.random.default_rng(num_clusters)
    distances = np.round(rng.random(300), 2).astype(np.float32)
    clusters = (num_clusters * rng.random(300) ** (8 if crowded else 1)).astype(np.int64)
    for num_pairs in (0, 1, 30, 150, 299, 300):
        expected = slow_ssp(distances, clusters, num_clusters, num_pairs, balance)
        assert len(expected) == num_pairs
        found = ssp_by_cuts(distances, clusters, num_clusters, num_pairs, balance, num_parts)
        np.testing.assert_array_equal(found, expected)
