"""SSP-pruning as stages (Sorscher et al., arXiv 2206.14486): cluster; each cluster first gives its balanced share of
farthest pairs, then the farthest of all other pairs fill the budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering import clusters_of
from orchestrator.clustering.stats import ClusterStats
from orchestrator.config import SspStep
from orchestrator.data.catalog import PartRows
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.pruning.quotas import first_quotas
from orchestrator.selection.budget import GroupedKeys, KeyReader, TopK, TopKMask, budget_stage, find_top_k
from orchestrator.selection.distance import CentroidDistances, DistanceKeys, distance_column
from orchestrator.selection.random_stream import seed_of, stream_input
from orchestrator.selection.score_column import FinishedStep, ScoreColumn


def stages(step: Step) -> list[Stage]:
    """Clustering and the keep list; every budget and balance shares the clustering."""
    settings = step.settings
    assert isinstance(settings, SspStep)
    clusters = clusters_of(step, settings.clustering)
    kept = budget_stage(
        step,
        scored=clusters.assigned,
        top_k=partial(_top_k, step, settings, clusters.assigned, clusters.stats),
        does=f"keep {settings.order} pairs first, over all clusters",
        **stream_input(step),
    )
    return [*clusters.stages, kept]


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """The distances from the centroids, which all pairs are compared by; None in random order."""
    return distance_column(step, step.source_of("scored"), by_cluster=False)


def _top_k(step: Step, settings: SspStep, assigned: Artifact, stats: Artifact, num_wanted: int) -> TopK:
    sizes = ClusterStats.read(stats).sizes
    try:
        first = first_quotas(sizes, num_wanted, settings.balance)
    except ValueError as error:
        raise UserError(f"selection.{step.name}: {error}") from error
    overall, in_cluster = (
        DistanceKeys(CentroidDistances(assigned, by_cluster), settings.order, seed_of(step))
        for by_cluster in (False, True)
    )
    keys: KeyReader = overall
    if first.any():
        keys = FirstThenKeys(find_top_k(step, TopK(in_cluster, sizes, first)), overall)
    return TopK(keys, np.array([sizes.sum()]), np.array([num_wanted]))


@dataclass(frozen=True)
class FirstThenKeys:
    """Keys that put the pairs which the clusters give first above all others."""

    first: TopKMask
    others: KeyReader

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> GroupedKeys:
        """Keys and groups of the given rows."""
        keys, groups = self.others(part, rows)
        # half of the keys' range is enough for distances, whose lower 32 bits are empty, and for random keys: the
        # other half is above all of them
        return GroupedKeys(np.where(self.first.kept(part, rows), np.uint64(2**64 - 1), keys >> np.uint64(1)), groups)
