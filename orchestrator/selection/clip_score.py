"""The CLIP-score filter as a stage: the pairs whose image and caption agree most, by budget or by threshold."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import ClipScoreStep
from orchestrator.data.catalog import PartRows
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.pruning.threshold import sortable
from orchestrator.selection.budget import EXCLUDED, Ranked, Ranking, budget_stage
from orchestrator.selection.filter import Rule, Verdict, filter_stage


def stages(step: Step) -> list[Stage]:
    """The keep list: the scores came with the embedding."""
    settings = step.settings
    assert isinstance(settings, ClipScoreStep)
    assert step.embedding is not None
    if not all(Embedding(step.embedding).has(tower) for tower in ("image", "text")):
        raise UserError(
            f"selection.{step.name}.embedding={settings.embedding} has no text or no image vectors, and the CLIP score "
            f"takes both; name one that embeds image and text"
        )
    if settings.threshold is None:
        does = "keep the highest CLIP scores"
        return [budget_stage(step, scored=step.embedding, ranking=partial(_ranking, step.embedding), does=does)]
    return [
        filter_stage(
            step,
            partial(_rule, Embedding(step.embedding), settings.threshold),
            does=f"keep CLIP scores of {settings.threshold:g} and more",
            embedding=step.embedding,
            threshold=settings.threshold,
        )
    ]


def _ranking(embedding: Artifact, num_wanted: int) -> Ranking:
    return Ranking(partial(_rank, Embedding(embedding)), None, np.array([num_wanted]))


def _rank(embedding: Embedding, part: PartRows, rows: NDArray[np.int64]) -> Ranked:
    scores = embedding.clip_score(part.index)[rows]
    return Ranked(sortable(np.nan_to_num(scores)), np.where(np.isnan(scores), EXCLUDED, 0))


def _rule(embedding: Embedding, threshold: float) -> Rule:
    def rule(part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        scores = embedding.clip_score(part.index)[rows]
        none, keep = np.isnan(scores), scores >= np.float32(threshold)
        return Verdict(keep, {"no_score": int(none.sum()), "low_score": int((~keep & ~none).sum())})

    return rule
