"""SemDeDup as stages (arXiv 2303.09540): cluster, compare within clusters, drop what is too near an earlier pair.

The similarity to the nearest earlier pair does not depend on eps: a sweep over eps compares nothing twice."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering import clusters_of
from orchestrator.clustering.assign import read_assigned
from orchestrator.config import SemDeDupStep
from orchestrator.data.catalog import PartRows
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.stage import Stage
from orchestrator.selection.filter import Rule, Verdict, filter_stage
from orchestrator.selection.near_duplicates import Similarity, compare_stages


def stages(step: Step) -> list[Stage]:
    """Clustering, comparison and the keep list; all but the last serve every eps."""
    settings = step.settings
    assert isinstance(settings, SemDeDupStep)
    clusters = clusters_of(step, settings.clustering)
    compared = compare_stages(step, settings, clusters)
    similarity = compared[-1].artifact
    keep = filter_stage(
        step,
        partial(_rule, clusters.assigned, Similarity(similarity, step.catalog), settings.eps),
        does=f"drop pairs within {settings.eps:g} of an earlier one of their cluster",
        similarity=similarity,
        eps=settings.eps,
    )
    return [*clusters.stages, *compared, keep]


def _rule(assigned: Artifact, similarity: Similarity, eps: float) -> Rule:
    def rule(part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        embedded = read_assigned(assigned, part.index).cluster >= 0
        duplicate = similarity.of_part(part.index)[0] > np.float32(1 - eps)
        keep = embedded.copy()
        keep[embedded] = ~duplicate
        return Verdict(keep, {"no_embedding": int((~embedded).sum()), "duplicate": int(duplicate.sum())})

    return rule
