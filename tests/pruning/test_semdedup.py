"""Compare SemDeDup's tiled comparison with the full similarity matrix."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.pruning.clusters import unit as normalised
from orchestrator.pruning.semdedup import max_earlier_similarity

Vectors = NDArray[np.float32]
TOLERANCE = 1e-6
"""Differences in the last bits: float32 adds 48 products in another order than float64."""


def unit(vectors: NDArray[np.floating]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clouds() -> dict[str, Vectors]:
    rng = np.random.default_rng(0)
    scattered = unit(rng.standard_normal((300, 48)))
    centres = scattered[rng.integers(0, 12, 300)]
    return {
        "random": scattered,
        "clustered": unit(centres + 0.02 * rng.standard_normal((300, 48))),
        "duplicates": scattered[rng.integers(0, 100, 300)],
        "all identical": np.repeat(scattered[:1], 300, axis=0),
        "opposite": np.concatenate([scattered[:150], -scattered[:150]]),
        "two": scattered[:2],
        "one": scattered[:1],
        "none": scattered[:0],
    }


def full_matrix(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosine of every item (row) with every earlier one (column), -inf elsewhere."""
    wide = vectors.astype(np.float64)
    return np.where(np.tri(len(wide), k=-1, dtype=bool), wide @ wide.T, -np.inf)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tile", [1, 7, 64, 300, 1000])
@pytest.mark.parametrize("name", clouds())
def test_similarities_equal_those_of_the_full_matrix(name: str, tile: int, dtype: type[np.floating]) -> None:
    vectors = clouds()[name].astype(dtype)
    similarity, earlier = max_earlier_similarity(vectors, tile)
    matrix = full_matrix(vectors if dtype == np.float32 else normalised(vectors))
    assert similarity.dtype == np.float32
    assert similarity[:1].tolist() == [-np.inf] * len(similarity[:1])
    assert earlier[:1].tolist() == [-1] * len(earlier[:1])
    for j in range(1, len(vectors)):
        expected = matrix[j].max()
        assert abs(float(similarity[j]) - expected) < TOLERANCE
        near = np.flatnonzero(matrix[j] > expected - TOLERANCE)
        assert earlier[j] in near
        if len(near) == 1:
            assert earlier[j] == matrix[j].argmax()


@pytest.mark.parametrize("eps", [0.001, 0.07, 0.5, 1.5])
@pytest.mark.parametrize("tile", [7, 64, 1000])
@pytest.mark.parametrize("name", ["random", "clustered", "duplicates", "all identical"])
def test_a_threshold_removes_the_pairs_that_the_definition_removes(name: str, tile: int, eps: float) -> None:
    vectors = clouds()[name]
    matrix = full_matrix(vectors)
    assert (np.abs(matrix[np.isfinite(matrix)] - (1 - eps)) > TOLERANCE).all(), (
        "no pair so near the threshold that rounding decides"
    )
    removed = [any(matrix[j, i] > 1 - eps for i in range(j)) for j in range(len(vectors))]
    assert (max_earlier_similarity(vectors, tile)[0] > 1 - eps).tolist() == removed


def test_a_removed_item_still_removes_later_ones() -> None:
    angles = np.array([0.0, 0.2, 0.4])
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    similarity, earlier = max_earlier_similarity(chain)
    np.testing.assert_allclose(similarity[1:], np.cos(0.2), atol=1e-6)
    assert earlier.tolist() == [-1, 0, 1]


def test_the_largest_cosine_does_not_depend_on_the_tile() -> None:
    vectors = clouds()["random"]
    copies = np.concatenate([vectors, vectors[::-1]])
    similarity = [max_earlier_similarity(copies, tile)[0][300:] for tile in (1, 7, 64, 1000)]
    for other in similarity[1:]:
        np.testing.assert_array_equal(other, similarity[0])


@pytest.mark.parametrize("tile", [7, 64, 1000])
def test_float16_gives_the_same_bits_as_its_normalised_float32(tile: int) -> None:
    half = clouds()["clustered"].astype(np.float16)
    whole = normalised(half)
    for found, expected in zip(max_earlier_similarity(half, tile), max_earlier_similarity(whole, tile), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("first", [0, 64, 256])
def test_the_tail_of_a_cluster_has_the_same_results_as_in_the_whole(first: int) -> None:
    vectors = clouds()["duplicates"]
    tail = max_earlier_similarity(vectors, 64, first=first)
    for found, expected in zip(tail, max_earlier_similarity(vectors, 64), strict=True):
        np.testing.assert_array_equal(found, expected[first:])


def test_memory_is_below_that_of_the_full_matrix_and_of_a_float32_copy() -> None:
    # a copy of the vectors in float32 would take 3 million bytes
    vectors = unit(np.random.default_rng(2).standard_normal((6000, 128))).astype(np.float16)
    tracemalloc.start()
    max_earlier_similarity(vectors, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000, "the full matrix would take 144 million bytes"
