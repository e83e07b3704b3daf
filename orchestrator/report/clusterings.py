"""Build the report's section on the clusterings that steps use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering.stats import ClusterStats
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.report.schema_clusters import ClusteringReport, ClusterSizes
from orchestrator.report.selected import SelectedStep


def clusterings(record: RunRecord, steps: list[SelectedStep]) -> dict[str, ClusteringReport]:
    """Return the clustering of each step that uses one."""
    reports = {}
    for step in steps:
        centroids = record.find(Role.TRAIN_CENTROIDS, step.name)
        stats = record.find(Role.CLUSTER_STATS, step.name)
        if centroids is not None and stats is not None:
            reports[step.name] = _report(centroids, ClusterStats.read(stats).sizes)
    return reports


def _report(centroids: Artifact, sizes: NDArray[np.int64]) -> ClusteringReport:
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
