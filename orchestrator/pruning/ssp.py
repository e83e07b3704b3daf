"""SSP: pruning by self-supervised prototypes (Sorscher et al., arXiv 2206.14486), with a balance between clusters.

Of N pairs to keep, each of the k clusters first gives its min(int(N / k * balance), M_j) pairs farthest from the
centroid, M_j being its size; the rest of N is filled with the farthest of all. Both are cuts (`pruning.cut`): one per
cluster with these quotas, and one over what is left. Balance 0 is the paper's rule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def first_quotas(sizes: NDArray[np.int64], num_pairs: int, balance: float) -> NDArray[np.int64]:
    """How many pairs each cluster gives first, int64 [k].

    Args:
        sizes: int64 [k], pairs in each cluster.
        num_pairs: N, the pairs to keep in all.
        balance: in [0, 1]; the share of an equal split that each cluster is sure of.

    Raises:
        ValueError: the clusters hold fewer pairs than are to be kept.
    """
    if num_pairs > sizes.sum():
        raise ValueError(
            f"{num_pairs:,} pairs are to be kept, but the clusters hold only {sizes.sum():,}; lower the budget"
        )
    return np.minimum(int(num_pairs / len(sizes) * balance), sizes)
