"""A clustering of the pairs that reach a step: a sample of their vectors, centroids trained on it, each pair's nearest
centroid, and the size and spread of the clusters.

Each of the four is an artifact, so a sweep over later settings computes them once; two steps with different settings
have two clusterings of the same embedding. The arithmetic is in `pruning.clusters`. Imports `embedding` and the layers
below it."""

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
    """The clustering that a step uses; it may not be computed yet. Errors: `UserError` for an embedding without image
    vectors."""
    if step.embedding is None or not Embedding(step.embedding).has("image"):
        raise UserError(
            f"selection.{step.name}: clustering needs image vectors, and the step's embedding has none; name one that "
            f"embeds images"
        )
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
