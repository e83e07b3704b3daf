"""Compare spherical k-means with its definition, and Lloyd's algorithm with faiss from the same start."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pruning.clusters import (
    FIXED_POINT,
    Nearest,
    fixed_point,
    next_centroids,
    sums_by_cluster,
    train,
    unit,
)


def blobs(num_vectors: int, dim: int, num_blobs: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_blobs, dim))
    return unit(centres[rng.integers(0, num_blobs, num_vectors)] + 0.4 * rng.standard_normal((num_vectors, dim)))


def lloyd(vectors: np.ndarray, start: np.ndarray, num_iterations: int) -> tuple[np.ndarray, list[float]]:
    centroids, objective = start, []
    for _ in range(num_iterations):
        clusters, distances = Nearest(centroids, num_threads=1)(vectors)
        sizes = np.bincount(clusters, minlength=len(start))
        objective.append(1 - float(distances.mean()))
        centroids, _ = next_centroids(sums_by_cluster(vectors, clusters, len(start)), sizes, centroids)
    return centroids, objective


def test_lloyd_equals_faiss_from_the_same_start() -> None:
    vectors = blobs(4000, 24, 12)
    start = vectors[np.random.default_rng(1).choice(len(vectors), 12, replace=False)]
    ours, objective = lloyd(vectors, start, 15)
    theirs = train(vectors, 12, seed=0, num_iterations=15, num_threads=1, start=start.copy())
    np.testing.assert_allclose(ours, theirs.centroids, atol=1e-4)
    np.testing.assert_allclose(objective, theirs.objective, atol=1e-5)
    assert theirs.num_restarts == 0


def test_training_uses_the_whole_sample_and_is_deterministic_by_seed() -> None:
    # by default faiss samples 256 vectors per centroid; 512 of the 3,000 vectors would give another objective
    vectors = blobs(3000, 16, 2)
    one = train(vectors, 2, seed=3, num_iterations=20, num_threads=1)
    cosines = (vectors @ one.centroids.T).max(axis=1)
    assert one.objective[-1] == pytest.approx(float(cosines.mean()), abs=1e-5)
    again = train(vectors, 2, seed=3, num_iterations=20, num_threads=1)
    np.testing.assert_array_equal(one.centroids, again.centroids)
    np.testing.assert_allclose(np.linalg.norm(one.centroids, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("split", [[], [1], [100, 333], list(range(0, 500, 7))])
def test_the_distance_of_a_vector_does_not_depend_on_its_block(split: list[int]) -> None:
    vectors, centroids = blobs(500, 32, 5).astype(np.float16), blobs(7, 32, 7, seed=2)
    nearest = Nearest(centroids, num_threads=1)
    whole = nearest(vectors)
    pieces = [nearest(piece) for piece in np.split(vectors, split) if len(piece)]
    np.testing.assert_array_equal(np.concatenate([piece[1] for piece in pieces]), whole[1])
    exact = unit(vectors).astype(np.float64) @ centroids.T.astype(np.float64)
    np.testing.assert_allclose(whole[1], 1 - exact.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(whole[0], exact.argmax(axis=1))


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_sums_do_not_depend_on_the_order(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    values, clusters = rng.uniform(-1, 1, (50, 3)).astype(np.float32), rng.integers(0, k, 50)
    sums = sums_by_cluster(values, clusters, k)
    order = rng.permutation(50)
    np.testing.assert_array_equal(sums_by_cluster(values[order], clusters[order], k), sums)
    halves = sums_by_cluster(values[:20], clusters[:20], k) + sums_by_cluster(values[20:], clusters[20:], k)
    np.testing.assert_array_equal(halves, sums)
    for j in range(k):
        np.testing.assert_allclose(sums[j] / FIXED_POINT, values[clusters == j].sum(axis=0), atol=1e-5)


def test_sums_of_one_number_per_vector() -> None:
    distances = np.array([0.5, 1.5, 0.25], np.float32)
    np.testing.assert_array_equal(
        sums_by_cluster(distances, np.array([2, 0, 2]), 3), fixed_point(np.array([1.5, 0, 0.75]))
    )


def test_an_empty_cluster_restarts_beside_the_largest() -> None:
    previous = blobs(3, 8, 3)
    vectors = blobs(30, 8, 2, seed=4)
    clusters = np.array([0] * 20 + [2] * 10)
    moved, num_empty = next_centroids(sums_by_cluster(vectors, clusters, 3), np.bincount(clusters), previous)
    assert num_empty == 1
    assert moved[1] @ moved[0] > 0.999
    assert (moved[1] != moved[0]).any()
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)
    shares = Nearest(moved, num_threads=1)(vectors[:20])[0]
    assert {0, 1} <= set(shares.tolist()), "both centroids get vectors of the largest cluster"


def test_vectors_with_zero_sum_do_not_move_the_centroid() -> None:
    previous = blobs(1, 4, 1)
    vectors = np.concatenate([previous, -previous])
    moved, _ = next_centroids(sums_by_cluster(vectors, np.zeros(2, int), 1), np.array([2]), previous)
    np.testing.assert_allclose(moved, previous, atol=1e-6)


@pytest.mark.parametrize(("asked", "visible", "used"), [(0, 8, None), (2, 8, 2), (2, 0, None)])
def test_only_the_gpus_that_the_caller_names_are_used(
    asked: int, visible: int, used: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []

    def on_gpus(index: faiss.Index, *_: object, ngpu: int, **__: object) -> faiss.Index:
        copies.append(ngpu)
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: visible)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", on_gpus)
    vectors = unit(np.random.default_rng(0).normal(size=(64, 8)))
    trained = train(vectors, 4, seed=0, num_iterations=2, num_threads=1, num_gpus=asked)
    Nearest(trained.centroids, num_threads=1, num_gpus=asked)(vectors)
    assert copies == ([] if used is None else [used, used])
