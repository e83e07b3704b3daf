"""SemDeDup's comparison (arXiv 2303.09540): of each item of a cluster, the largest cosine to any earlier item,

    s_j = max over i < j of x_i.x_j,

whether or not item i is removed itself. Item j is a duplicate at eps if s_j > 1 - eps, so one comparison is enough for
every eps.

Only the lower triangle of the similarity matrix is needed. It is computed in tiles of `TILE` x `TILE`: a row of tiles
holds some later items against all earlier ones, from left to right, and ends with the tile on the diagonal, of which
only the part below the diagonal counts. One tile is in memory at a time, for clusters of any size. Tiles are multiplied
in float32, and the last bits of such a product depend on the shape of the tile; so the cosine of the winning pair is
computed again in float64, and the result does not depend on the tiles beyond ties of float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.clusters import unit

TILE = 512
"""Items in the rows and columns of a tile: 1 MB of float32 products, which fit the cache of a core."""

Vectors = NDArray[np.float32] | NDArray[np.float16]


def max_earlier_similarity(
    vectors: Vectors, tile: int = TILE, *, first: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compare each item from `first` on with all items before it.

    Args:
        vectors: [n, d], in the order in which items are kept: float32 of unit norm, or float16, which stores the norm
            to 3 digits only and is converted to float32 of norm 1 tile by tile. All finite and none zero: the caller
            leaves out items without an embedding.
        tile: items in the rows and columns of a tile; memory beside the vectors grows with tile * (tile + d) + n.
        first: a multiple of `tile`, so the tiles are those of a comparison of all items.

    Returns:
        similarity float32 [n - first], -inf for item 0; earlier int64 [n - first], the item with that cosine, the first
        one if float32 does not distinguish several, -1 for item 0.
    """
    assert first % tile == 0, f"{first} is not a multiple of {tile}"
    num_found = len(vectors) - first
    similarity = np.full(num_found, -np.inf, np.float32)
    earlier = np.full(num_found, -1)
    for start in range(first, len(vectors), tile):
        rows = slice(start - first, start - first + tile)
        later = _unit(vectors[start : start + tile])
        for column in range(0, start + 1, tile):
            # on the diagonal, the same array on both sides: BLAS has another routine for a matrix times itself
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
