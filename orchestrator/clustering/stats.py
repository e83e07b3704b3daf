"""Size and spread of every cluster, summed over groups of parts; no result depends on how they are grouped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering.assign import read_assigned
from orchestrator.data.catalog import PartRows, part_groups
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.pruning.clusters import FIXED_POINT, sums_by_cluster
from orchestrator.storage import files
from orchestrator.storage.npy import from_npy, to_npy

VERSION = 1
MAX_GROUPS = 128


@dataclass(frozen=True)
class ClusterStats:
    """Pairs int64 [k] of each cluster, and the mean distance of its pairs float64 [k], d_intra (NaN where empty)."""

    sizes: NDArray[np.int64]
    intra: NDArray[np.float64]

    @classmethod
    def read(cls, stats: Artifact) -> ClusterStats:
        """The sums over all groups: k numbers, whatever the pool's size."""
        groups = (from_npy(files.read(part_path(stats, group, "npy"))) for group in range(len(stats.parts)))
        sizes, distances = reduce(add, groups)
        with np.errstate(invalid="ignore"):
            return cls(sizes, distances / FIXED_POINT / sizes)


def stats_stage(step: Step, k: int, assigned: Artifact) -> Stage:
    """Counts every cluster's pairs and sums their distances, in fixed point."""
    artifact = Artifact.of(step.store_uri, "cluster_stats", version=VERSION, assigned=assigned)
    name = f"measure clusters, {step.name}"

    def build(display: Display) -> Artifact:
        return build_parts(
            artifact,
            part_groups(step.catalog, max_groups=MAX_GROUPS),
            partial(_work, k, assigned),
            display=display,
            name=name,
        )

    return Stage(
        name=name,
        role=Role.CLUSTER_STATS,
        step=step.name,
        does="count every cluster's pairs, sum their distances",
        artifact=artifact,
        build=build,
        scaling=CostScaling(stores=lambda _: k, num_tasks=by_groups(MAX_GROUPS)),
    )


def _work(k: int, assigned: Artifact) -> Work:
    def work(group: Sequence[PartRows]) -> PartResult:
        total = np.zeros((2, k), np.int64)
        for part in group:
            clusters, distances = read_assigned(assigned, part.index)
            embedded = clusters >= 0
            total[0] += np.bincount(clusters[embedded], minlength=k)
            total[1] += sums_by_cluster(distances[embedded], clusters[embedded], k)
        return PartResult({"npy": to_npy(total)}, {"rows": int(total[0].sum())})

    return work
