"""The order in which clustered pairs are kept: by distance from the centroid, within each cluster or over all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering.assign import read_assigned
from orchestrator.config import Order
from orchestrator.data.catalog import PartRows
from orchestrator.engine.artifact import Artifact
from orchestrator.pruning.order import order_keys
from orchestrator.selection.budget import EXCLUDED, Ranked


@dataclass(frozen=True)
class DistanceRank:
    """Ranks a part's pairs; those without an embedding are excluded."""

    assigned: Artifact
    order: Order
    seed: int
    by_cluster: bool

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> Ranked:
        """Keys and groups of the given rows, those that reached the step."""
        clusters, distances = read_assigned(self.assigned, part.index)
        # those without an embedding have no distance, and no place in the order
        known = np.where(clusters < 0, np.float32(0), distances)
        keys = order_keys(known, rows + part.first_ordinal, self.order, self.seed)
        groups = clusters if self.by_cluster else np.where(clusters < 0, EXCLUDED, 0)
        return Ranked(keys, groups)
