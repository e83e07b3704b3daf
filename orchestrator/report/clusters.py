"""Report the clusterings that steps use, and how many pairs budgeted steps kept of each cluster, with examples.

Examples are the pairs with the lowest random keys. Each block of parts returns as many kept and pruned pairs per
cluster as are shown, and so does any union of blocks: the result does not depend on the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.clustering.assign import read_assigned
from orchestrator.clustering.stats import ClusterStats
from orchestrator.data.catalog import PartRows, part_rows
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import over_blocks
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.pruning.order import random_scores
from orchestrator.report.pairs import examples_at
from orchestrator.report.schema_pairs import (
    Cluster,
    ClusteringReport,
    ClusterPruning,
    ClusterSheet,
    ClusterSizes,
    Example,
)
from orchestrator.report.selected import SelectedStep
from orchestrator.selection.dbp import read_quotas

MAX_CLUSTERS = 500
SHEETS_EACH_END = 3
PAIRS_PER_ROW = 8
SEED = int.from_bytes(b"sheets", "big")


@dataclass(frozen=True)
class ClusterSample:
    """Example pairs of some parts, with columns `cluster`, `kept`, `key`, `ordinal` and `distance`; and the number of
    kept pairs in each requested cluster, int64 [m]."""

    pairs: pl.DataFrame
    num_kept: NDArray[np.int64]

    def __add__(self, other: ClusterSample) -> ClusterSample:
        return ClusterSample(_lowest(pl.concat([self.pairs, other.pairs])), self.num_kept + other.num_kept)


def _lowest(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.sort("key").group_by("cluster", "kept", maintain_order=True).head(PAIRS_PER_ROW)


def clusterings(record: RunRecord, steps: list[SelectedStep]) -> dict[str, ClusteringReport]:
    """Return the clustering of each step that uses one."""
    reports = {}
    for step in steps:
        centroids = record.find(Role.TRAIN_CENTROIDS, step.name)
        stats = record.find(Role.CLUSTER_STATS, step.name)
        if centroids is not None and stats is not None:
            reports[step.name] = _clustering(centroids, ClusterStats.read(stats).sizes)
    return reports


def _clustering(centroids: Artifact, sizes: NDArray[np.int64]) -> ClusteringReport:
    totals, filled = centroids.totals, sizes[sizes > 0]
    return ClusteringReport(
        k=totals["k"],
        pairs=int(sizes.sum()),
        empty=len(sizes) - len(filled),
        sizes=ClusterSizes(min=int(filled.min()), median=float(np.median(filled)), max=int(filled.max())),
        sampled=totals["sampled"],
        iterations=len(totals["objective"]),
        objective_first=totals["objective"][0],
        objective_last=totals["objective"][-1],
        restarts=totals["restarts"],
    )


def cluster_prunings(record: RunRecord, steps: list[SelectedStep]) -> dict[str, ClusterPruning]:
    """Return, for each budgeted step with a clustering, the pairs kept of its clusters."""
    reports = {}
    for step in steps:
        table = cluster_table(record, step.name)
        if table is not None and step.assigned is not None and "keep_fraction" in step.settings:
            clusters = [Cluster(**row) for row in table.iter_rows(named=True)]
            reports[step.name] = _pruning(step, step.assigned, clusters)
    return reports


def cluster_table(record: RunRecord, step: str) -> pl.DataFrame | None:
    """Return the clusters of a step that are not empty, densest first; None for a step without a clustering.

    Columns: `cluster`, `size`, `d_intra`; for a step with quotas also `d_inter`, `complexity`, `quota`."""
    stats, quotas = record.find(Role.CLUSTER_STATS, step), record.find(Role.QUOTAS, step)
    if stats is None:
        return None
    if quotas is not None:
        order = ("complexity", "cluster")
        table = read_quotas(quotas).rename({"intra": "d_intra", "inter": "d_inter"}).drop("share")
    else:
        order, read = ("d_intra", "cluster"), ClusterStats.read(stats)
        table = pl.DataFrame({"cluster": np.arange(len(read.sizes)), "size": read.sizes, "d_intra": read.intra})
    return table.filter(pl.col("size") > 0).sort(*order)


def _pruning(step: SelectedStep, assigned: Artifact, clusters: list[Cluster]) -> ClusterPruning:
    fit = np.median([cluster.size for cluster in clusters]) / 2
    large = [cluster for cluster in clusters if cluster.size >= fit]
    num_sheets = min(SHEETS_EACH_END, len(large) // 2)
    ends = [large[:num_sheets], large[len(large) - num_sheets :][::-1]] if num_sheets else [large, []]
    sheets = _sheets(step, assigned, [*ends[0], *ends[1]])
    shown = np.unique(np.linspace(0, len(clusters) - 1, min(len(clusters), MAX_CLUSTERS)).round().astype(int))
    return ClusterPruning(
        ordered_by="d_intra" if clusters[0].complexity is None else "complexity",
        clusters=[clusters[index] for index in shown],
        densest=sheets[: len(ends[0])],
        most_spread=sheets[len(ends[0]) :],
    )


def _sheets(step: SelectedStep, assigned: Artifact, clusters: list[Cluster]) -> list[ClusterSheet]:
    chosen = np.array([cluster.cluster for cluster in clusters], np.int64)
    sample = reduce(
        ClusterSample.__add__, over_blocks(part_rows(step.catalog), partial(_sample, step, assigned, chosen))
    )
    scores: dict[int, float | None] = dict(sample.pairs.select("ordinal", "distance").iter_rows())
    examples = examples_at(step.catalog, scores)

    def of(cluster: Cluster, kept: bool) -> list[Example]:
        mine = sample.pairs.filter((pl.col("cluster") == cluster.cluster) & (pl.col("kept") == kept))
        return [examples[ordinal] for ordinal in mine.sort("distance", "ordinal")["ordinal"]]

    return [
        ClusterSheet(cluster=cluster, num_kept=int(num_kept), kept=of(cluster, True), pruned=of(cluster, False))
        for cluster, num_kept in zip(clusters, sample.num_kept, strict=True)
    ]


def _sample(step: SelectedStep, assigned: Artifact, chosen: NDArray[np.int64], parts: list[PartRows]) -> ClusterSample:
    return reduce(ClusterSample.__add__, (_sample_part(step, assigned, chosen, part) for part in parts))


def _sample_part(step: SelectedStep, assigned: Artifact, chosen: NDArray[np.int64], part: PartRows) -> ClusterSample:
    rows = np.flatnonzero(KeepList(step.incoming).mask(part.index, part.num_rows))
    clusters, distances = read_assigned(assigned, part.index)
    among = np.isin(clusters, chosen)
    rows, clusters = rows[among], clusters[among]
    kept = KeepList(step.outgoing).mask(part.index, part.num_rows)[rows]
    pairs = pl.DataFrame(
        {
            "cluster": clusters,
            "kept": kept,
            "key": random_scores(SEED, part.first_ordinal, part.num_rows)[rows],
            "ordinal": part.first_ordinal + rows,
            "distance": distances[among].astype(np.float64),
        }
    )
    return ClusterSample(_lowest(pairs), np.array([np.count_nonzero(clusters[kept] == cluster) for cluster in chosen]))
