"""SemDeDup's comparison (arXiv 2303.09540): of each item of a cluster, the largest cosine to any earlier item,

    s_j = max over i < j of x_i.x_j,

whether or not that item is itself removed. Item j is a duplicate at eps if s_j > 1 - eps, so one comparison serves
every eps. Only the lower triangle of the similarity matrix is computed, tile by tile, so that memory is bounded
whatever the size of the cluster; the result is that of the full matrix. Tiles are multiplied in float32; the winning
pair's cosine is then summed anew in float64, as the last bits of a product depend on the shape of its tile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.clusters import unit

TILE = 512

Vectors = NDArray[np.float32] | NDArray[np.float16]


def max_earlier_similarity(
    vectors: Vectors, tile: int = TILE, *, first: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compares each item from `first` on with all before it.

    Args:
        vectors: [n, d], in the order in which items are kept: float32 of unit norm, or float16, which keeps 3 digits
            of that and is widened and brought to norm 1 tile by tile. All finite and none zero: items without an
            embedding are left out before.
        tile: items in a tile's rows and columns; memory beside the vectors is of the order of tile * (tile + d) + n.
        first: a multiple of `tile`.

    Returns:
        similarity float32 [n - first], -inf for the first item of all; earlier int64 [n - first], the first item that
        attains it as far as float32 tells them apart, -1 for the first of all.
    """
    assert first % tile == 0, f"{first} is no multiple of {tile}"
    num_found = len(vectors) - first
    similarity = np.full(num_found, -np.inf, np.float32)
    earlier = np.full(num_found, -1)
    for start in range(first, len(vectors), tile):
        rows = slice(start - first, start - first + tile)
        later = _unit(vectors[start : start + tile])
        for column in range(0, start + 1, tile):
            # on the diagonal the same array: BLAS multiplies a matrix by itself in an order of its own
            products = later @ (later if column == start else _unit(vectors[column : column + tile])).T
            if column == start:
                products[~np.tri(len(later), k=-1, dtype=bool)] = -np.inf
            nearest = products.argmax(axis=1)
            found = np.take_along_axis(products, nearest[:, None], axis=1)[:, 0]
            better = found > similarity[rows]
            similarity[rows][better] = found[better]
            earlier[rows][better] = column + nearest[better]
        similarity[rows] = _cosines(later, _unit(vectors[earlier[rows]]))
    if first == 0:
        similarity[:1] = -np.inf
    return similarity, earlier


def _unit(vectors: Vectors) -> NDArray[np.float32]:
    return unit(vectors) if vectors.dtype == np.float16 else np.asarray(vectors, np.float32)


def _cosines(later: Vectors, earlier: Vectors) -> NDArray[np.float64]:
    return np.einsum("nd,nd->n", later, earlier, dtype=np.float64)
