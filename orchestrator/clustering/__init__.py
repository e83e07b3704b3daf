"""Clusters of the pairs that reach a selection step: a sample, centroids trained on it, every pair's nearest centroid.

Each is an artifact, so a sweep over later settings computes it once; two steps with different settings have two
clusterings of the same embeddings. Imports `embedding` and the layers below it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.clustering.assign import assign_stage
from orchestrator.clustering.sample import sample_stage
from orchestrator.clustering.stats import stats_stage
from orchestrator.clustering.train import centroids_stage
from orchestrator.config import Clustering
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The artifacts of a clustering, and the stages that make them."""

    centroids: Artifact
    assigned: Artifact
    stats: Artifact
    stages: list[Stage]


def clusters_of(step: Step, settings: Clustering) -> Clusters:
    """The clustering that a step goes by, perhaps not computed yet. Errors: `UserError` without image vectors."""
    if step.embedding is None or not Embedding(step.embedding).has("image"):
        raise UserError(f"selection.{step.name}: clusters are of image vectors, and its embedding has none")
    sample = sample_stage(step, settings)
    centroids = centroids_stage(step, settings, sample.artifact)
    assigned = assign_stage(step, settings.k, centroids.artifact)
    stats = stats_stage(step, settings.k, assigned.artifact)
    return Clusters(
        centroids=centroids.artifact,
        assigned=assigned.artifact,
        stats=stats.artifact,
        stages=[sample, centroids, assigned, stats],
    )
