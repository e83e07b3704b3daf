"""The largest inner product of a vector with many others, the same whatever is computed beside it.

A product of two matrices rounds by its shape, so it cannot say which of two nearly equal products is larger. Here it
only narrows the choice, in three steps:

1. The caller computes float32 products of blocks. If the largest leads by more than `rounding(d, np.float32)`, no
   order of summation changes the winner.
2. `largest_products` computes the other rows again as float64 products of blocks.
3. Products that float64 blocks do not distinguish either are summed row by row (`row_products`), an order that depends
   on nothing but the two vectors. Of equal products the first one wins.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xxhash
from numpy.typing import NDArray

MAX_PRODUCTS = 1 << 22
"""float64 products that are in memory at once: 32 MB."""
# number of rows: their float64 copies fit into the cache of a core
CACHED_ROWS = 256

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]
Read = Callable[[slice | Ints], Vectors]
"""Returns the unit vectors at some places, float32 [n, d]."""


def rounding(dim: int, dtype: type[np.floating]) -> float:
    """How far apart two products of unit vectors [dim] are at least if their order is certain.

    Each is off by at most dim * u, where u is half of the machine epsilon; a hundredth more covers the terms of higher
    order and norms that are not exactly 1."""
    return 1.01 * dim * float(np.finfo(dtype).eps)


def row_products(left: NDArray[np.floating], right: NDArray[np.floating]) -> Floats:
    """The products of corresponding rows [n, d], float64 [n]. None of them depends on the other rows."""
    products = np.empty(len(left))
    for start in range(0, len(left), CACHED_ROWS):
        rows = slice(start, start + CACHED_ROWS)
        products[rows] = np.einsum("nd,nd->n", left[rows].astype(np.float64), right[rows].astype(np.float64))
    return products


def first_equal(read: Read, num_vectors: int, block: int) -> Ints:
    """For each vector, the first place with exactly the same numbers, int64 [n]: its own if no earlier one has them.

    `block` vectors are in memory at once."""
    hashes = np.empty(num_vectors, np.uint64)
    for start in range(0, num_vectors, block):
        # adding 0 turns -0.0 into 0.0
        rows = np.ascontiguousarray(read(slice(start, start + block)) + np.float32(0))
        hashes[start : start + block] = np.fromiter(map(xxhash.xxh3_64_intdigest, rows), np.uint64, len(rows))
    _, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first = firsts[inverse]
    repeated = np.flatnonzero(first != np.arange(num_vectors))
    for start in range(0, len(repeated), block):
        places = repeated[start : start + block]
        # vectors that differ may have the same hash
        collides = (read(places) != read(first[places])).any(axis=1)
        first[places[collides]] = places[collides]
    return first


def largest_products(rows: Vectors, read: Read, num_others: Ints, block: int) -> Ints:
    """For each row, the place of the largest product, int64 [m]; of equal ones the first.

    Args:
        rows: float32 [m, d], of any norm.
        read: reads the other vectors, which have norm 1.
        num_others: int64 [m]; each row is compared with the first so many others, at least one.
        block: so many of the others are widened at once.
    """
    found = np.empty(len(rows), np.int64)
    num_rows = max(1, MAX_PRODUCTS // max(1, int(num_others.max(initial=1))))
    for start in range(0, len(rows), num_rows):
        these = slice(start, start + num_rows)
        found[these] = _largest_of_block(rows[these].astype(np.float64), read, num_others[these], block)
    return found


def _largest_of_block(rows: Floats, read: Read, num_others: Ints, block: int) -> Ints:
    products = np.full((len(rows), int(num_others.max())), -np.inf)
    for start in range(0, products.shape[1], block):
        places = slice(start, min(start + block, products.shape[1]))
        products[:, places] = rows @ read(places).astype(np.float64).T
    products[np.arange(products.shape[1]) >= num_others[:, None]] = -np.inf
    margin = rounding(rows.shape[1], np.float64) * np.linalg.norm(rows, axis=1)
    row, place = np.nonzero(products >= (products.max(axis=1) - margin)[:, None])
    exact = np.empty(len(row))
    for start in range(0, len(row), block):
        these = slice(start, start + block)
        exact[these] = row_products(rows[row[these]], read(place[these]))
    order = np.lexsort((place, -exact, row))
    return place[order[np.flatnonzero(np.diff(row[order], prepend=-1))]]
