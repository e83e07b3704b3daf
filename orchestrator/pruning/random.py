"""Random pruning: a random key for every pair, of which the highest are kept.

The key of the pair with global ordinal i is the i-th output of SplitMix64 (Steele, Lea and Flood 2014) whose state
starts at mix(seed). It depends on nothing else, so it does not matter how pairs lie in parts; and since both the step
by an odd number and the mixing are bijections of 64 bits, all pairs of a pool have different keys.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def random_keys(seed: int, ordinals: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys of the pairs with the given global ordinals [n], uint64 [n], uniform over all 64-bit numbers.

    `seed` is any integer, taken modulo 2**64.
    """
    start = _mix(np.array([seed % 2**64], dtype=np.uint64))
    return _mix(start + ordinals.astype(np.uint64) * _GAMMA)


def random_scores(seed: int, first_ordinal: int, num_pairs: int) -> NDArray[np.uint64]:
    """Keys of `num_pairs` consecutive pairs from global ordinal `first_ordinal` on, uint64 [num_pairs]."""
    return random_keys(seed, np.arange(first_ordinal, first_ordinal + num_pairs))


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _GAMMA
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
