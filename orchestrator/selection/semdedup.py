"""SemDeDup as stages (arXiv 2303.09540): cluster, compare within clusters, drop pairs too similar to an earlier pair.

The similarity to the nearest earlier pair does not depend on eps, so a sweep over eps compares nothing twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.clustering import clusters_of
from orchestrator.clustering.assign import read_assigned
from orchestrator.config import SemDeDupStep
from orchestrator.data.step import Step
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.stage import Stage
from orchestrator.pruning.semdedup import threshold_of
from orchestrator.selection.filter import ThresholdRule, filter_stage
from orchestrator.selection.near_duplicates import compare_stages
from orchestrator.selection.score_column import FinishedStep, ScoreColumn, Scores
from orchestrator.selection.similarity import Similarity


def stages(step: Step) -> list[Stage]:
    """Clustering, comparison and the keep list; every eps shares all but the last."""
    settings = step.settings
    assert isinstance(settings, SemDeDupStep)
    clusters = clusters_of(step, settings.clustering)
    compared = compare_stages(step, settings, clusters)
    similarity = compared[-1].artifact
    column = _column(step, clusters.assigned, similarity)
    keep = filter_stage(
        step,
        partial(ThresholdRule, column, threshold_of(settings.eps), missing="no_embedding", beyond="duplicate"),
        does=(
            f"drop pairs within {settings.eps:g} of an earlier one of their cluster"
            if settings.eps
            else "drop exact copies of an earlier vector"
        ),
        similarity=similarity,
        eps=settings.eps,
    )
    return [*clusters.stages, *compared, keep]


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """The similarity to the nearest earlier pair."""
    similarity = step.source_of("similarity")
    assigned = step.source_of("similarity", "compared", "regrouped", "assigned")
    return _column(step, assigned, similarity) if similarity and assigned else None


def _column(step: Step | FinishedStep, assigned: Artifact, similarity: Artifact) -> ScoreColumn:
    return ScoreColumn(
        name=f"score_{step.name}",
        step=step.name,
        label="highest cosine to an earlier pair of the cluster",
        artifact=similarity,
        incoming=step.incoming,
        read=EarlierSimilarity(assigned, Similarity(similarity, step.catalog)),
        keeps="lowest",
    )


@dataclass(frozen=True)
class EarlierSimilarity:
    """Reads a part's similarities, float32: NaN for a pair without an embedding, -inf for the first pair of a cluster,
    which has no earlier one."""

    assigned: Artifact
    similarity: Similarity

    def __call__(self, index: int, rows: NDArray[np.int64]) -> Scores:
        """The similarities of the pairs that reached the step."""
        embedded = read_assigned(self.assigned, index).cluster >= 0
        values = np.full(len(embedded), np.nan, np.float32)
        values[embedded] = self.similarity.of_part(index)[0]
        return Scores(values)
