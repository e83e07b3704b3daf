"""Nearly equal products: the winner does not depend on the block, its size or the threads, and is that of exact
arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.pruning.clusters import Nearest, unit
from orchestrator.pruning.exact import first_equal, largest_products, row_products
from orchestrator.pruning.semdedup import BELOW_ONE, max_earlier_similarity, threshold_of
from tests.support.near_ties import NUM_VECTORS, Vectors, around, crowd


def exact_products(rows: NDArray[np.floating], others: NDArray[np.floating]) -> list[list[int]]:
    """Return all products without any rounding, times 2**160."""
    left, right = (np.array([[int(x * 2.0**80) for x in row] for row in m.tolist()], object) for m in (rows, others))
    assert (left * 2.0**-80 == rows).all(), "a number has less than 80 binary places"
    products: list[list[int]] = (left @ right.T).tolist()
    return products


def test_the_nearest_centroid_is_that_of_exact_arithmetic() -> None:
    vectors, centroids = crowd()
    found = Nearest(centroids, num_threads=1)(vectors[:60])[0]
    products = exact_products(vectors[:60], centroids)
    # `index` finds the first of equal ones
    assert found.tolist() == [row.index(max(row)) for row in products]
    assert 5 not in found
    assert 12 not in found[::3]
    assert {11, 12} < set(found.tolist())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_files", [1, 2, 31, NUM_VECTORS])
def test_files_and_threads_do_not_change_the_cluster(
    num_files: int, num_threads: int, dtype: type[np.floating]
) -> None:
    vectors, centroids = crowd()
    expected = Nearest(centroids, num_threads=1)(vectors.astype(dtype))
    nearest = Nearest(centroids, num_threads=num_threads)
    found = [nearest(file) for file in np.array_split(vectors.astype(dtype), num_files)]
    for one, other in zip(zip(*found, strict=True), expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(one), other)
    assert len(np.unique(expected[0])) > 10


def test_the_order_of_vectors_does_not_change_their_clusters() -> None:
    vectors, centroids = crowd()
    order = np.random.default_rng(4).permutation(NUM_VECTORS)
    nearest = Nearest(centroids, num_threads=1)
    np.testing.assert_array_equal(nearest(vectors[order])[0], nearest(vectors)[0][order])


def test_a_single_centroid_and_equal_ones() -> None:
    vectors, centroids = crowd()
    assert not Nearest(centroids[:1], num_threads=1)(vectors)[0].any()
    assert not Nearest(np.repeat(centroids[:1], 5, axis=0), num_threads=1)(vectors)[0].any()


def near_copies() -> Vectors:
    """Return vectors that are all nearly equal, some of them exactly."""
    base = unit(np.random.default_rng(5).standard_normal((1, 64)))
    vectors = around(base, 300, 2e-4, 6)
    return np.concatenate([vectors, vectors[:40], vectors[::-1][:40], around(base, 20, 1e-8, 7)])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
def test_tiles_do_not_change_the_nearest_of_near_copies(tile: int, dtype: type[np.floating]) -> None:
    vectors = near_copies().astype(dtype)
    expected = max_earlier_similarity(vectors)
    for found, other in zip(max_earlier_similarity(vectors, tile), expected, strict=True):
        np.testing.assert_array_equal(found, other)
    for found, other in zip(max_earlier_similarity(vectors, tile, first=290), expected, strict=True):
        np.testing.assert_array_equal(found, other[290:])


def test_the_nearest_of_near_copies_is_that_of_exact_arithmetic() -> None:
    vectors = near_copies()[250:]
    similarity, earlier = max_earlier_similarity(vectors, 7)
    products = exact_products(vectors, vectors)
    for j in range(1, len(vectors)):
        same = (vectors[:j] == vectors[j]).all(axis=1)
        if same.any():
            assert (similarity[j], earlier[j]) == (1, same.argmax())
        else:
            assert earlier[j] == products[j].index(max(products[j][:j]))
            assert similarity[j] == min(np.float32(max(products[j][:j]) / 2**160), BELOW_ONE)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-7])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_small_eps_finds_every_exact_copy(dtype: type[np.floating], eps: float) -> None:
    """160 copies of 40 vectors, in any order, some with a negative zero."""
    originals = unit(np.random.default_rng(8).standard_normal((40, 512))).astype(dtype)
    originals[:, 3] = 0
    vectors = np.concatenate([originals, np.tile(originals, (4, 1))])[np.random.default_rng(9).permutation(200)]
    vectors[::2, 3] *= -1
    kept = max_earlier_similarity(vectors)[0] <= np.float32(threshold_of(eps))
    assert kept.sum() == 40
    assert len(np.unique(vectors[kept] + dtype(0), axis=0)) == 40


def test_eps_zero_keeps_vectors_that_differ_in_one_bit() -> None:
    vectors = np.repeat(unit(np.random.default_rng(10).standard_normal((1, 64))), 5, axis=0)
    vectors[1, 0] = np.nextafter(vectors[1, 0], np.float32(2))
    similarity, earlier = max_earlier_similarity(vectors)
    assert similarity.tolist() == [-np.inf, BELOW_ONE, 1, 1, 1]
    assert earlier.tolist() == [-1, 0, 0, 0, 0]


def test_vectors_with_the_same_hash_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    same: Callable[[object], int] = lambda _: 1  # noqa: E731
    monkeypatch.setattr("orchestrator.pruning.exact.xxhash.xxh3_64_intdigest", same)
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    # only equality with the first vector of a hash is known: others count as different, which costs time alone
    assert first_equal(vectors.__getitem__, 4, 3).tolist() == [0, 1, 0, 3]


@pytest.mark.parametrize("dim", [1, 3, 31, 257, 768])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_product_does_not_depend_on_other_rows(dtype: type[np.floating], dim: int) -> None:
    rng = np.random.default_rng(dim)
    left, right = rng.standard_normal((2, 300, dim)).astype(dtype)
    whole, order = row_products(left, right), rng.permutation(300)
    np.testing.assert_array_equal(row_products(left[order], right[order]), whole[order])
    for size in (1, 2, 5, 100):
        pieces = [row_products(left[i : i + size], right[i : i + size]) for i in range(0, 300, size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_rows_are_compared_with_so_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.pruning.exact.MAX_PRODUCTS", 20)
    vectors, others = around(np.zeros((1, 8), np.float32), 30, 1, 1), around(np.zeros((1, 8), np.float32), 9, 1, 2)
    among = np.arange(30) % 9 + 1
    expected = [int((others[:num].astype(float) @ row).argmax()) for row, num in zip(vectors, among, strict=True)]
    assert largest_products(vectors, others.__getitem__, among, 4).tolist() == expected
