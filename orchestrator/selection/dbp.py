"""Density-based pruning as stages (arXiv 2401.04578): cluster, a quota for each cluster by how complex it is, and the
quota's pairs farthest from the centroid."""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl

from orchestrator.clustering import Clusters, clusters_of
from orchestrator.clustering.stats import ClusterStats
from orchestrator.clustering.train import read_centroids
from orchestrator.config import DbpStep
from orchestrator.data.catalog import to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage
from orchestrator.errors import UserError
from orchestrator.pruning.density import complexities, inter_distances, quotas, shares
from orchestrator.selection.budget import Ranking, budget_stage, num_wanted
from orchestrator.selection.distance import DistanceRank
from orchestrator.storage import files

VERSION = 1


def stages(step: Step) -> list[Stage]:
    """Clustering, quotas and the keep list; the clustering serves every budget, tau and number of neighbours."""
    settings = step.settings
    assert isinstance(settings, DbpStep)
    clusters = clusters_of(step, settings.clustering)
    shared_out = _quotas_stage(step, settings, clusters)
    cut = budget_stage(
        step,
        scored=shared_out.artifact,
        ranking=partial(_ranking, step, settings, clusters, shared_out.artifact),
        does=f"keep each cluster's quota, {settings.order} pairs first",
    )
    return [*clusters.stages, shared_out, cut]


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

    def build(display: Display) -> Artifact:
        work = partial(_quotas_work, step, settings, clusters)
        return build_parts(artifact, [None], work, display=display, name=name, count="clusters")

    return Stage(
        name=name,
        role=Role.QUOTAS,
        step=step.name,
        does=f"share the budget out by complexity, tau {settings.tau:g}",
        artifact=artifact,
        build=build,
        # every centroid against every other
        scaling=CostScaling(
            work=lambda _: settings.clustering.k**2, stores=lambda _: settings.clustering.k, one_task=True
        ),
    )


def _quotas_work(step: Step, settings: DbpStep, clusters: Clusters) -> Work:
    def work(_: None) -> PartResult:
        stats = ClusterStats.read(clusters.stats)
        inter = inter_distances(read_centroids(clusters.centroids), settings.num_neighbours)
        complexity = complexities(stats.intra, inter)
        share = shares(complexity, stats.sizes, settings.tau)
        try:
            found = quotas(share, stats.sizes, num_wanted(step, KeepList(step.incoming).num_pairs), settings.balance)
        except ValueError as error:
            raise UserError(f"selection.{step.name}: {error}") from error
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

    return work


def read_quotas(shared_out: Artifact) -> pl.DataFrame:
    """A row for each cluster: size, d_intra, d_inter, complexity, share of the softmax, quota in pairs."""
    return pl.read_parquet(files.read(part_path(shared_out, 0, "parquet")))


def _ranking(step: Step, settings: DbpStep, clusters: Clusters, shared_out: Artifact, _: int) -> Ranking:
    table = read_quotas(shared_out)
    rank = DistanceRank(clusters.assigned, settings.order, settings.seed, by_cluster=True)
    return Ranking(rank, table["size"].to_numpy(), table["quota"].to_numpy())
