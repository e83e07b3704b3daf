"""SSP-pruning as stages (Sorscher et al., arXiv 2206.14486): cluster; each cluster first gives its balanced share of
farthest pairs, the farthest of all fill the budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering import Clusters, clusters_of
from orchestrator.clustering.stats import ClusterStats
from orchestrator.config import SspStep
from orchestrator.data.catalog import PartRows
from orchestrator.data.step import Step
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.pruning.ssp import first_quotas
from orchestrator.selection.budget import Rank, Ranked, Ranking, Threshold, budget_stage, find_threshold
from orchestrator.selection.distance import DistanceRank


def stages(step: Step) -> list[Stage]:
    """Clustering and the keep list; the clustering serves every budget and balance."""
    settings = step.settings
    assert isinstance(settings, SspStep)
    clusters = clusters_of(step, settings.clustering)
    cut = budget_stage(
        step,
        scored=clusters.assigned,
        ranking=partial(_ranking, step, settings, clusters),
        does=f"keep {settings.order} pairs first, over all clusters",
    )
    return [*clusters.stages, cut]


def _ranking(step: Step, settings: SspStep, clusters: Clusters, num_wanted: int) -> Ranking:
    sizes = ClusterStats.read(clusters.stats).sizes
    try:
        first = first_quotas(sizes, num_wanted, settings.balance)
    except ValueError as error:
        raise UserError(f"selection.{step.name}: {error}") from error
    rank: Rank = DistanceRank(clusters.assigned, settings.order, settings.seed, by_cluster=False)
    if first.any():
        by_cluster = DistanceRank(clusters.assigned, settings.order, settings.seed, by_cluster=True)
        rank = _FirstThenRank(find_threshold(step, Ranking(by_cluster, sizes, first)), rank)
    return Ranking(rank, np.array([sizes.sum()]), np.array([num_wanted]))


@dataclass(frozen=True)
class _FirstThenRank:
    """What the clusters gave first is above all else."""

    first: Threshold
    rank: Rank

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> Ranked:
        keys, groups = self.rank(part, rows)
        # half of the keys' range is enough for distances, whose last bits are empty, and for random keys
        return Ranked(np.where(self.first.kept(part, rows), np.uint64(2**64 - 1), keys >> np.uint64(1)), groups)
