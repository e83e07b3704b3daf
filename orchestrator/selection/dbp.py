"""Density-based pruning as stages (arXiv 2401.04578): cluster, compute a quota for each cluster from its complexity,
and keep that many of the cluster's pairs, the farthest from the centroid first."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from orchestrator.clustering import Clusters, clusters_of
from orchestrator.clustering.stats import ClusterStats
from orchestrator.clustering.train import read_centroids
from orchestrator.config import DbpStep, Order
from orchestrator.data.catalog import to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_parquet
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage
from orchestrator.errors import UserError
from orchestrator.pruning.quotas import complexities, inter_distances, quotas, shares
from orchestrator.selection.budget import TopK, budget_stage, num_wanted
from orchestrator.selection.distance import CentroidDistances, DistanceKeys, distance_column
from orchestrator.selection.random_stream import seed_of, stream_input
from orchestrator.selection.score_column import FinishedStep, ScoreColumn

logger = logging.getLogger(__name__)
VERSION = 2


def stages(step: Step) -> list[Stage]:
    """Clustering, quotas and the keep list; every budget, tau and number of neighbours shares the clustering."""
    settings = step.settings
    assert isinstance(settings, DbpStep)
    clusters = clusters_of(step, settings.clustering)
    quota = _quotas_stage(step, settings, clusters)
    kept = budget_stage(
        step,
        scored=quota.artifact,
        top_k=partial(_top_k, settings.order, seed_of(step), clusters.assigned, quota.artifact),
        does=f"keep each cluster's quota, {settings.order} pairs first",
        **stream_input(step),
    )
    return [*clusters.stages, quota, kept]


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """The distances from the centroids, by which the pairs of a cluster are compared; None in random order."""
    return distance_column(step, step.source_of("scored", "stats", "assigned"), by_cluster=True)


def _quotas_stage(step: Step, settings: DbpStep, clusters: Clusters) -> Stage:
    artifact = Artifact.of(
        step.store_uri,
        "quotas",
        version=VERSION,
        incoming=step.incoming,
        stats=clusters.stats,
        settings=settings.model_dump(include={"keep_fraction", "keep_pairs", "tau", "num_neighbours", "balance"}),
    )
    name = f"quotas, {step.name}"

    return Stage(
        name=name,
        role=Role.QUOTAS,
        step=step.name,
        does=f"divide the budget among the clusters by complexity, tau {settings.tau:g}",
        artifact=artifact,
        build=BuildQuotas(artifact, QuotasOfClusters(step, settings, clusters.centroids, clusters.stats), name),
        # every centroid against every other
        scaling=CostScaling(
            work=lambda _: settings.clustering.k**2, stores=lambda _: settings.clustering.k, one_task=True
        ),
    )


@dataclass(frozen=True)
class BuildQuotas:
    """Builds the table of quotas."""

    artifact: Artifact
    quotas: QuotasOfClusters
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Runs the one task."""
        PartsJob(self.artifact, [None], self.make, name=self.name, count="clusters").build(display)
        totals = self.artifact.totals
        counts = (totals["quota"], totals["clusters"], totals["empty"])
        logger.info("%s: %d pairs divided among %d clusters, %d of them empty", self.name, *counts)
        return self.artifact

    def make(self) -> QuotasOfClusters:
        """The work of the task."""
        return self.quotas


@dataclass(frozen=True)
class QuotasOfClusters:
    """The work of the one task that computes all quotas."""

    step: Step
    settings: DbpStep
    centroids: Artifact
    stats: Artifact

    def __call__(self, _: None) -> PartResult:
        """The table of the clusters."""
        settings, stats = self.settings, ClusterStats.read(self.stats)
        inter = inter_distances(read_centroids(self.centroids), settings.num_neighbours)
        complexity = complexities(stats.intra, inter)
        share = shares(complexity, stats.sizes, settings.tau)
        wanted = num_wanted(self.step, KeepList(self.step.incoming).num_pairs)
        try:
            found = quotas(share, stats.sizes, wanted, settings.balance)
        except ValueError as error:
            raise UserError(f"selection.{self.step.name}: {error}") from error
        table = pl.DataFrame(
            {
                "cluster": np.arange(len(share)),
                "size": stats.sizes,
                "intra": stats.intra,
                "inter": inter,
                "complexity": complexity,
                "share": share,
                "quota": found,
            }
        )
        numbers = {"clusters": len(share), "empty": int((stats.sizes == 0).sum()), "quota": int(found.sum())}
        return PartResult({"parquet": to_parquet(table.to_arrow())}, numbers)


def read_quotas(quota: Artifact) -> pl.DataFrame:
    """A row for each cluster: size, d_intra, d_inter, complexity, share of the softmax, quota in pairs."""
    return pl.DataFrame(read_parquet(part_path(quota, 0, "parquet")))


def _top_k(order: Order, seed: int, assigned: Artifact, quota: Artifact, _: int) -> TopK:
    # the budget is in the quotas
    table = read_quotas(quota)
    keys = DistanceKeys(CentroidDistances(assigned, by_cluster=True), order, seed)
    return TopK(keys, table["size"].to_numpy(), table["quota"].to_numpy())
