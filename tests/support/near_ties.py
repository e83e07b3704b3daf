"""Vectors and centroids of which several are nearly as close."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.clusters import unit

Vectors = NDArray[np.float32]
NUM_VECTORS, DIM = 580, 512


def around(base: Vectors, num_vectors: int, spread: float, seed: int) -> Vectors:
    """Return unit vectors around a direction, float32 [n, d]."""
    noise = np.random.default_rng(seed).standard_normal((num_vectors, base.shape[-1]))
    return unit(base + spread * noise)


@cache
def crowd() -> tuple[Vectors, Vectors]:
    """Return 580 vectors, and 24 centroids of which 20 are nearly as close. Number 5 equals number 2; number 12 is as
    close as number 11 to every third vector, in exact arithmetic; the last 4 are far."""
    base = unit(np.random.default_rng(0).standard_normal((1, DIM)))
    centroids = around(base, 24, 1e-7, 1)
    centroids[5] = centroids[2]
    centroids[9] = np.nextafter(centroids[2], np.float32(2))
    centroids[20:] = around(-base, 4, 0.1, 2)
    vectors = around(base, NUM_VECTORS, 0.3, 3)
    # two coordinates are exchanged that are equal in these vectors
    centroids[12] = centroids[11]
    centroids[12, [0, 1]] = centroids[11, [1, 0]]
    vectors[::3, 1] = vectors[::3, 0]
    return vectors, centroids
