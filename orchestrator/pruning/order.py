"""The order in which the pairs of a clustering are kept, by their distance from the centroid: "hard" farthest first,
"easy" nearest first, "random" by a hash of seed and ordinal. Equal keys are a tie: whoever sorts breaks it by position.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.random import random_keys
from orchestrator.pruning.threshold import sortable

Order = Literal["hard", "easy", "random"]
STREAM = 0x6F72646572
"""Keeps the random order apart from random pruning by the same seed."""


def order_keys(
    distances: NDArray[np.float32], ordinals: NDArray[np.int64], order: Order, seed: int
) -> NDArray[np.uint64]:
    """Keys uint64 [n], the highest first.

    Args:
        distances: [n], each pair's distance from the centroid of its cluster.
        ordinals: [n], the pairs' global ordinals.
        order: "hard", "easy" or "random".
        seed: of the random order; the others do not depend on it.

    Raises:
        ValueError: a distance is NaN, unless the order is random: pairs without an embedding are left out before.
    """
    match order:
        case "hard":
            return sortable(distances)
        case "easy":
            return sortable(-distances)
        case "random":
            return random_keys(seed ^ STREAM, ordinals)
