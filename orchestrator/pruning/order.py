"""Keys that say in which order pairs are kept: at random, or by their distance from a centroid.

Random keys: the key of the pair with global ordinal i is the i-th output of SplitMix64 (Steele, Lea and Flood 2014)
with the initial state mix(seed). It depends on nothing else, so the division of a pool into parts does not matter. Both
the step by an odd number and the mixing are bijections of 64 bits, so all pairs of a pool have different keys.

Orders of a clustering: "hard" keeps the farthest pairs first, "easy" the nearest, "random" follows random keys. Equal
keys are a tie, which the caller breaks by position.

Each step draws from its own stream: its name is mixed into the seed, so two steps with the same seed are independent.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from orchestrator.pruning.threshold import sortable

Order = Literal["hard", "easy", "random"]
STREAMS = {"random": 0, "metaclip": int.from_bytes(b"metaclip", "big")}
"""The streams of two steps that had their own before all steps had one: their keep lists are those of earlier
versions."""
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def step_seed(seed: int, name: str) -> int:
    """The seed of the random numbers of the step `name`, from the seed in its settings."""
    return seed ^ STREAMS.get(name, xxhash.xxh3_64_intdigest(name.encode()))


def random_keys(seed: int, ordinals: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys of the pairs with the given global ordinals [n], uint64 [n], uniform over all 64-bit numbers.

    `seed` is any integer, taken modulo 2**64.
    """
    start = _mix(np.array([seed % 2**64], dtype=np.uint64))
    return _mix(start + ordinals.astype(np.uint64) * _GAMMA)


def random_scores(seed: int, first_ordinal: int, num_pairs: int) -> NDArray[np.uint64]:
    """Keys of `num_pairs` consecutive pairs, the first of global ordinal `first_ordinal`, uint64 [num_pairs]."""
    return random_keys(seed, np.arange(first_ordinal, first_ordinal + num_pairs))


def order_keys(
    distances: NDArray[np.float32], ordinals: NDArray[np.int64], order: Order, seed: int
) -> NDArray[np.uint64]:
    """Keys uint64 [n]: the pair with the highest key is kept first.

    Args:
        distances: [n], the distance of each pair from the centroid of its cluster.
        ordinals: [n], the global ordinals of the pairs.
        order: "hard", "easy" or "random".
        seed: of the random order, from `step_seed`; the other orders do not depend on it.

    Raises:
        ValueError: a distance is NaN and the order is not random. The caller leaves out pairs without an embedding.
    """
    match order:
        case "hard":
            return sortable(distances)
        case "easy":
            return sortable(-distances)
        case "random":
            return random_keys(seed, ordinals)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _GAMMA
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
