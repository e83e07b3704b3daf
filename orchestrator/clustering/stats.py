"""Size and spread of every cluster, summed over groups of parts. The sums are of integers, so the result does not
depend on the groups."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering.assign import read_assigned
from orchestrator.data.catalog import Catalog, PartRows, part_groups
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_npy
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.pruning.clusters import FIXED_POINT, sums_by_cluster
from orchestrator.storage.npy import to_npy

logger = logging.getLogger(__name__)
VERSION = 1
MAX_GROUPS = 128


@dataclass(frozen=True)
class ClusterStats:
    """The number of pairs in each cluster, int64 [k], and their mean distance from the centroid, d_intra, float64 [k]
    (NaN for an empty cluster)."""

    sizes: NDArray[np.int64]
    intra: NDArray[np.float64]

    @classmethod
    def read(cls, stats: Artifact) -> ClusterStats:
        """The sums over all groups: k numbers of each kind, for a pool of any size."""
        groups = (read_npy(part_path(stats, group, "npy")) for group in range(len(stats.parts)))
        sizes, distances = reduce(add, groups)
        with np.errstate(invalid="ignore"):
            return cls(sizes, distances / FIXED_POINT / sizes)


def stats_stage(step: Step, k: int, assigned: Artifact) -> Stage:
    """The stage that counts the pairs of every cluster and sums their distances, in fixed point."""
    artifact = Artifact.of(step.store_uri, "cluster_stats", version=VERSION, assigned=assigned)
    name = f"measure clusters, {step.name}"

    return Stage(
        name=name,
        role=Role.CLUSTER_STATS,
        step=step.name,
        does="count the pairs of every cluster and sum their distances",
        artifact=artifact,
        build=BuildStats(artifact, step.catalog, GroupStats(k, assigned), name),
        scaling=CostScaling(stores=lambda _: k, num_tasks=by_groups(MAX_GROUPS)),
    )


@dataclass(frozen=True)
class BuildStats:
    """Builds the sums, by groups of parts."""

    artifact: Artifact
    catalog: Catalog
    work: GroupStats
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Sums group by group."""
        groups = part_groups(self.catalog, max_groups=MAX_GROUPS)
        PartsJob(self.artifact, groups, self.make, name=self.name).build(display)
        sizes = ClusterStats.read(self.artifact).sizes
        counts = (int((sizes == 0).sum()), len(sizes), int(sizes.max()))
        logger.info("%s: %d of %d clusters are empty, the largest has %d pairs", self.name, *counts)
        return self.artifact

    def make(self) -> GroupStats:
        """The work on groups."""
        return self.work


@dataclass(frozen=True)
class GroupStats:
    """The work on a group of parts."""

    k: int
    assigned: Artifact

    def __call__(self, group: Sequence[PartRows]) -> PartResult:
        """Sizes and summed distances int64 [2, k], the distances in fixed point."""
        total = np.zeros((2, self.k), np.int64)
        for part in group:
            clusters, distances = read_assigned(self.assigned, part.index)
            embedded = clusters >= 0
            total[0] += np.bincount(clusters[embedded], minlength=self.k)
            total[1] += sums_by_cluster(distances[embedded], clusters[embedded], self.k)
        return PartResult({"npy": to_npy(total)}, {"rows": int(total[0].sum())})
