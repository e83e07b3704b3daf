"""The CLIP-score filter as a stage: the pairs whose image and caption agree most, by budget or by threshold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import ClipScoreStep
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.selection.budget import ScoreKeys, TopK, budget_stage
from orchestrator.selection.filter import ThresholdRule, filter_stage
from orchestrator.selection.score_column import FinishedStep, ScoreColumn, Scores


def stages(step: Step) -> list[Stage]:
    """The keep list: the scores are part of the embedding.

    Errors: `UserError` for an embedding without image vectors or without text vectors."""
    settings = step.settings
    assert isinstance(settings, ClipScoreStep)
    assert step.embedding is not None
    if not all(Embedding(step.embedding).has(tower) for tower in ("image", "text")):
        raise UserError(
            f"selection.{step.name}.embedding={settings.embedding} has no text vectors or no image vectors, and the "
            f"CLIP score needs both; name an embedding of images and texts"
        )
    column = _column(step, step.embedding)
    if settings.threshold is None:
        does = "keep the highest CLIP scores"
        return [budget_stage(step, scored=step.embedding, top_k=partial(_top_k, column), does=does)]
    return [
        filter_stage(
            step,
            partial(ThresholdRule, column, settings.threshold, missing="no_score", beyond="low_score"),
            does=f"keep CLIP scores of {settings.threshold:g} and more",
            embedding=step.embedding,
            threshold=settings.threshold,
        )
    ]


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """The cosines of image and caption."""
    embedding = step.source_of("scored") or step.source_of("embedding")
    return _column(step, embedding) if embedding else None


def _column(step: Step | FinishedStep, embedding: Artifact) -> ScoreColumn:
    return ScoreColumn(
        name=f"score_{step.name}",
        step=step.name,
        label="CLIP score, cosine of image and caption",
        artifact=embedding,
        incoming=step.incoming,
        read=ClipScores(Embedding(embedding)),
    )


@dataclass(frozen=True)
class ClipScores:
    """Reads a part's cosines of image and caption, float32; NaN where either has no vector."""

    embedding: Embedding

    def __call__(self, index: int, rows: NDArray[np.int64]) -> Scores:
        """The cosines of the given rows: the embedding has those of the whole part."""
        return Scores(self.embedding.clip_score(index)[rows])


def _top_k(column: ScoreColumn, num_wanted: int) -> TopK:
    # the number of pairs with both vectors is not known before they are counted
    return TopK(ScoreKeys(column), None, np.array([num_wanted]))
