"""SemDeDup's comparison (arXiv 2303.09540): of each item of a cluster, the largest cosine to any earlier item,

    s_j = max over i < j of x_i.x_j,

whether or not item i is removed itself. Item j is a duplicate at eps if s_j > 1 - eps, so one comparison is enough for
every eps.

Only the lower triangle of the similarity matrix is needed. It is computed in tiles of `TILE` x `TILE`: a row of tiles
holds some later items against all earlier ones, from left to right, and ends with the tile on the diagonal, of which
only the part below the diagonal counts. One tile is in memory at a time, for clusters of any size. Tiles are multiplied
in float32, and the last bits of such a product depend on the shape of the tile. So `pruning.exact` decides where the
two largest products are too close, and the cosine of the winning pair is summed in float64: the result depends on the
vectors and their order alone.

Exact copies, vectors with the same numbers, have the cosine 1 to the first of them, and all other pairs a smaller one:
eps = 0 removes the exact copies and nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.clusters import unit
from orchestrator.pruning.exact import Ints, Read, first_equal, largest_products, rounding, row_products

TILE = 512
"""Items in the rows and columns of a tile: 1 MB of float32 products, which fit the cache of a core."""
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
"""The largest cosine of two vectors that differ: the float32 below 1."""

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
        first: the first item to compare.

    Returns:
        similarity float32 [n - first], at most 1, and 1 for exact copies of an earlier item alone; -inf for item 0.
        earlier int64 [n - first], the first item with that cosine, -1 for item 0.
    """
    original = first_equal(lambda places: _unit(vectors[places]), len(vectors), tile)
    is_copy = original != np.arange(len(vectors))
    distinct = np.flatnonzero(~is_copy)

    def read(places: slice | Ints) -> NDArray[np.float32]:
        # a slice where there are no copies: picking rows one by one copies them
        return _unit(vectors[places if len(distinct) == len(vectors) else distinct[places]])

    begin = int(np.searchsorted(distinct, first))
    similarity = np.ones(len(vectors) - first, np.float32)
    earlier = original[first:]
    found, place = _among_distinct(read, len(distinct), tile, begin)
    similarity[~is_copy[first:]] = found
    earlier[~is_copy[first:]] = np.where(place < 0, -1, distinct[place])
    return similarity, earlier


def threshold_of(eps: float) -> float:
    """The largest similarity that is kept, 1 - eps, but below 1: an exact copy is removed at every eps."""
    return min(1 - eps, float(BELOW_ONE))


def _among_distinct(read: Read, num_items: int, tile: int, begin: int) -> tuple[NDArray[np.float32], Ints]:
    """The similarities and places [num_items - begin] of items that all differ."""
    similarity = np.full(num_items - begin, -np.inf, np.float32)
    earlier = np.full(num_items - begin, -1)
    # rows of tiles from the one that has the first item
    for start in range(begin // tile * tile, num_items, tile):
        later = read(slice(start, min(start + tile, num_items)))
        nearest = _nearest_earlier(later, read, start, tile)
        compared = nearest >= 0
        cosines = np.full(len(later), -np.inf)
        cosines[compared] = np.minimum(row_products(later[compared], read(nearest[compared])), BELOW_ONE)
        skip = max(0, begin - start)
        rows = slice(start + skip - begin, start + len(later) - begin)
        similarity[rows], earlier[rows] = cosines[skip:], nearest[skip:]
    return similarity, earlier


def _nearest_earlier(later: NDArray[np.float32], read: Read, start: int, tile: int) -> Ints:
    """The place of the earlier item with the largest product, for the items from `start` on; -1 for item 0."""
    each = np.arange(len(later))
    nearest = np.full(len(later), -1)
    largest, second = np.full((2, len(later)), -np.inf, np.float32)
    for column in range(0, start + 1, tile):
        # on the diagonal, the same array on both sides: BLAS has another routine for a matrix times itself
        products = later @ (later if column == start else read(slice(column, column + tile))).T
        if column == start:
            products[~np.tri(len(later), k=-1, dtype=bool)] = -np.inf
        place = products.argmax(axis=1)
        found = products[each, place]
        products[each, place] = -np.inf
        second = np.maximum.reduce([second, products.max(axis=1), np.minimum(largest, found)])
        better = found > largest
        largest[better], nearest[better] = found[better], column + place[better]
    unsure = np.flatnonzero((second > -np.inf) & (second >= largest - rounding(later.shape[1], np.float32)))
    nearest[unsure] = largest_products(later[unsure], read, start + unsure, tile)
    return nearest


def _unit(vectors: Vectors) -> NDArray[np.float32]:
    return unit(vectors) if vectors.dtype == np.float16 else np.asarray(vectors, np.float32)
