"""DBP: distances between centroids, shares, and quotas, compared with a generic solver and optimality conditions."""

from __future__ import annotations

import clarabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from orchestrator.pruning import quotas as quotas_module
from orchestrator.pruning.quotas import complexities, inter_distances, least_quotas, quotas, real_quotas, shares

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def centroids_with_copies(num_clusters: int, num_copies: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(num_clusters)
    vectors = rng.standard_normal((num_clusters, 16))
    vectors[rng.integers(0, num_clusters, num_copies)] = vectors[0]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("num_copies", [0, 5, 200])
@pytest.mark.parametrize(("num_clusters", "num_neighbours"), [(50, 20), (50, 1), (50, 49), (20, 20), (3, 20), (2, 1)])
def test_inter_distances_equal_the_definition(
    num_clusters: int, num_neighbours: int, num_copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Includes copies of a centroid, and blocks of a few rows."""
    centroids = centroids_with_copies(num_clusters, num_copies)
    wide = centroids.astype(np.float64)
    expected = []
    for j in range(num_clusters):
        distances = sorted(1 - wide[j] @ wide[m] for m in range(num_clusters) if m != j)[:num_neighbours]
        expected.append(sum(distances) / len(distances))
    np.testing.assert_allclose(inter_distances(centroids, num_neighbours), expected, atol=1e-6)
    monkeypatch.setattr(quotas_module, "BLOCK_ENTRIES", 7 * num_clusters)
    np.testing.assert_allclose(inter_distances(centroids, num_neighbours), expected, atol=1e-6)


def test_a_single_cluster_has_no_neighbour_and_keeps_everything() -> None:
    inter = inter_distances(np.array([[1, 0]], np.float32), 20)
    assert inter.tolist() == [0]
    share = shares(complexities(np.array([0.3]), inter), np.array([10]), 0.1)
    assert share.tolist() == [1]
    assert quotas(share, np.array([10]), 4, 0.0).tolist() == [4]


def test_shares_are_a_softmax_over_non_empty_clusters() -> None:
    complexity = complexities(np.array([0.2, np.nan, 0.5]), np.array([0.5, 0.9, 0.4]))
    found = shares(complexity, np.array([5, 0, 1]), 0.1)
    np.testing.assert_allclose(found, np.array([np.e, 0, np.e**2]) / (np.e + np.e**2), rtol=1e-14)
    equal = shares(np.zeros(4), np.array([1, 1, 0, 1]), 0.1)
    np.testing.assert_allclose(equal, [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-15)


def test_shares_of_extreme_complexities_are_finite() -> None:
    found = shares(np.array([4.0, 0.0, 4.0]), np.array([1, 1, 1]), 1e-4)
    assert found.tolist() == [0.5, 0, 0.5]


def solved(share: Floats, least: Ints, sizes: Ints, num_pairs: int) -> Floats:
    """Return the quotas of a generic solver, in units of the mean quota: A x + s = b with s = 0 (the sum) or s >= 0."""
    num_clusters = len(share)
    scale = num_pairs / num_clusters
    each = sparse.identity(num_clusters, format="csc")
    constraints = sparse.vstack([np.ones((1, num_clusters)), each, -each], format="csc")
    limits = np.concatenate([[num_clusters], sizes / scale, -least / scale])
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(2 * num_clusters)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    solver = clarabel.DefaultSolver(2 * each, -2 * share * num_pairs / scale, constraints, limits, cones, settings)
    found = solver.solve()
    assert found.status == clarabel.SolverStatus.Solved
    return np.array(found.x) * scale


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("keep_fraction", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("tau", [0.02, 0.1, 10.0])
def test_quotas_equal_those_of_a_generic_solver(tau: float, keep_fraction: float, balance: float) -> None:
    rng = np.random.default_rng(3)
    sizes = rng.lognormal(5, 1.5, 40).astype(np.int64) + 1
    sizes[[4, 11]] = 0
    share = shares(rng.random(40) * 0.5, sizes, tau)
    num_pairs = int(sizes.sum() * keep_fraction)
    least = least_quotas(sizes, num_pairs, balance)
    real = real_quotas(share, least, sizes, num_pairs)
    np.testing.assert_allclose(real, solved(share, least, sizes, num_pairs), atol=1e-6 * num_pairs)
    assert np.abs(quotas(share, sizes, num_pairs, balance) - real).max() < 1


def assert_optimal(real: Floats, share: Floats, least: Ints, sizes: Ints, num_pairs: int) -> None:
    """Check the Karush-Kuhn-Tucker conditions on the shift of each quota, its difference from share * num_pairs.

    All quotas between their bounds have the same shift. A quota at its lower bound has at least that shift, and a quota
    at its upper bound has at most that shift."""
    tolerance = 1e-9 * max(1, num_pairs)
    assert abs(real.sum() - num_pairs) <= tolerance
    assert (real >= least).all()
    assert (real <= sizes).all()
    off = real - share * num_pairs
    may_fall, may_rise = off[real > least], off[real < sizes]
    assert may_fall.max(initial=-np.inf) <= may_rise.min(initial=np.inf) + tolerance


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Ints, int, float]:
    """Generate complexities over a wide range, sizes with empty and huge clusters, and a feasible number of pairs."""
    sizes = np.array(draw(st.lists(st.sampled_from([0, 1, 2, 7, 50, 10**6]), min_size=1, max_size=12)), np.int64)
    complexity = np.array(draw(st.lists(st.floats(0, 4), min_size=len(sizes), max_size=len(sizes))))
    balance = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    num_pairs = draw(st.integers(int((sizes > 0).sum()), int(sizes.sum())))
    return shares(complexity, sizes, draw(st.sampled_from([0.01, 0.1, 1.0]))), sizes, num_pairs, balance


@settings(deadline=None)
@given(problem=problems())
def test_quotas_of_any_clusters_are_optimal(problem: tuple[Floats, Ints, int, float]) -> None:
    share, sizes, num_pairs, balance = problem
    least = least_quotas(sizes, num_pairs, balance)
    expected_least = [min(max(1, int(num_pairs / len(sizes) * balance)), int(size)) for size in sizes]
    assert least.tolist() == expected_least
    if num_pairs < least.sum():
        with pytest.raises(ValueError, match=f"{num_pairs:,} pairs .* {least.sum():,}"):
            quotas(share, sizes, num_pairs, balance)
        return
    real = real_quotas(share, least, sizes, num_pairs)
    assert_optimal(real, share, least, sizes, num_pairs)
    found = quotas(share, sizes, num_pairs, balance)
    assert found.sum() == num_pairs
    assert (found >= least).all()
    assert (found <= sizes).all()
    assert np.abs(found - real).max() < 1


def test_largest_remainders_are_rounded_up() -> None:
    sizes = np.array([100, 100, 100, 100])
    assert quotas(np.array([0.17, 0.28, 0.26, 0.29]), sizes, 10, 0.0).tolist() == [2, 3, 2, 3]
    assert quotas(np.full(4, 0.25), sizes, 10, 0.0).tolist() == [3, 3, 2, 2], "of equal remainders, the earlier cluster"


def test_quotas_with_a_huge_cluster_and_a_full_cluster() -> None:
    sizes = np.array([10_000, 20, 30, 0])
    share = shares(np.array([0.01, 0.3, 0.3, 0.5]), sizes, 0.05)
    assert quotas(share, sizes, 1000, 0.0).tolist() == [950, 20, 30, 0]
    assert quotas(share, sizes, int(sizes.sum()), 0.0).tolist() == sizes.tolist()
    assert quotas(share, sizes, 3, 0.0).tolist() == [1, 1, 1, 0]


def test_fewer_pairs_than_clusters_are_an_error() -> None:
    sizes = np.array([1, 0, 1, 0, 0, 1])
    share = shares(np.arange(6) / 10, sizes, 0.1)
    assert quotas(share, sizes, 3, 1.0).tolist() == sizes.tolist()
    with pytest.raises(ValueError, match=r"the budget is 2 pairs, but every cluster .* together 3"):
        quotas(share, sizes, 2, 0.0)


def test_more_pairs_than_the_clusters_hold_are_an_error() -> None:
    with pytest.raises(ValueError, match="the budget is 1,001 pairs, but the clusters have only 1,000"):
        quotas(np.array([0.5, 0.5]), np.array([400, 600]), 1001, 0.0)


def test_quotas_of_a_hundred_thousand_clusters() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.lognormal(7, 1.5, 100_000).astype(np.int64)
    share = shares(rng.random(100_000) * 0.5, sizes, 0.1)
    num_pairs = int(sizes.sum() * 0.4)
    least = least_quotas(sizes, num_pairs, 0.5)
    real = real_quotas(share, least, sizes, num_pairs)
    assert_optimal(real, share, least, sizes, num_pairs)
    found = quotas(share, sizes, num_pairs, 0.5)
    assert found.sum() == num_pairs
    assert np.abs(found - real).max() < 1
