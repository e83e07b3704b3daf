"""The distance of a clustered pair from its centroid: the score of SSP and DBP, and their order of keeping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering.assign import read_assigned
from orchestrator.config import Order
from orchestrator.data.catalog import PartRows
from orchestrator.engine.artifact import Artifact
from orchestrator.pruning.order import order_keys
from orchestrator.selection.budget import EXCLUDED, GroupedKeys
from orchestrator.selection.score_column import FinishedStep, ScoreColumn, Scores

LABEL = "distance from the centroid, 1 - cosine"


@dataclass(frozen=True)
class CentroidDistances:
    """Reads a part's distances, float32; NaN where a pair has no embedding. With `by_cluster`, each cluster is a group
    and has its own threshold."""

    assigned: Artifact
    by_cluster: bool

    def __call__(self, index: int, rows: NDArray[np.int64]) -> Scores:
        """The distances of the pairs that reached the step."""
        clusters, distances = read_assigned(self.assigned, index)
        return Scores(distances, clusters if self.by_cluster else None)


@dataclass(frozen=True)
class DistanceKeys:
    """The keys of a part's pairs in an order of keeping; a pair without an embedding cannot be kept."""

    distances: CentroidDistances
    order: Order
    seed: int

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> GroupedKeys:
        """Keys and groups of the given rows, those that reached the step."""
        values, clusters = self.distances(part.index, rows)
        missing = np.isnan(values)
        # a missing distance has no place in the order: the group excludes the pair, whatever the key is
        keys = order_keys(np.where(missing, np.float32(0), values), rows + part.first_ordinal, self.order, self.seed)
        return GroupedKeys(keys, np.where(missing, EXCLUDED, 0) if clusters is None else clusters)


def distance_column(step: FinishedStep, assigned: Artifact | None, *, by_cluster: bool) -> ScoreColumn | None:
    """The distances as the score of SSP or DBP. None in random order, where no distance decides."""
    order: Order = step.settings.get("order", "hard")
    if assigned is None or order == "random":
        return None
    return ScoreColumn(
        name=f"score_{step.name}",
        step=step.name,
        label=LABEL,
        artifact=assigned,
        incoming=step.incoming,
        read=CentroidDistances(assigned, by_cluster),
        keeps="highest" if order == "hard" else "lowest",
    )
