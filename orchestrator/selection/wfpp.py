"""WFPP as stages (arXiv 2410.10879): count words, sum the counts, score every caption in CPU actors, and keep the
budget of highest scores."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.config import WfppStep
from orchestrator.data.catalog import Catalog, PartRows, part_rows, to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_parquet
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_part
from orchestrator.pruning.caption_words import caption_words
from orchestrator.pruning.wfpp import WordTable, discard_probabilities, scores
from orchestrator.selection.budget import ScoreKeys, TopK, budget_stage
from orchestrator.selection.score_column import FinishedStep, ScoreColumn, Scores
from orchestrator.selection.word_counts import count_stage, kept_captions, read_words, words_stage

logger = logging.getLogger(__name__)
VERSION = 1


def stages(step: Step) -> list[Stage]:
    """Counts, words, scores and the keep list; every keep fraction shares all but the last."""
    settings = step.settings
    assert isinstance(settings, WfppStep)
    count = count_stage(step.store_uri, step.catalog, step.incoming, label=step.name)
    words = words_stage(step.store_uri, step.catalog, count.artifact, min_count=settings.min_count, label=step.name)
    score = _score_stage(step, settings, words.artifact)
    kept = budget_stage(
        step,
        scored=score.artifact,
        top_k=partial(_top_k, step, _column(step, score.artifact)),
        does="keep the highest word-frequency scores",
    )
    return [count, words, score, kept]


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """The word-frequency scores."""
    scored = step.source_of("scored")
    return _column(step, scored) if scored else None


def _column(step: Step | FinishedStep, scored: Artifact) -> ScoreColumn:
    return ScoreColumn(
        name=f"score_{step.name}",
        step=step.name,
        label="word-frequency score",
        artifact=scored,
        incoming=step.incoming,
        read=WordScores(scored),
    )


def _score_stage(step: Step, settings: WfppStep, words: Artifact) -> Stage:
    artifact = Artifact.of(
        step.store_uri,
        "scores",
        version=VERSION,
        catalog=step.catalog.artifact,
        keep=step.incoming,
        words=words,
        settings=settings.model_dump(exclude={"keep_fraction", "keep_pairs"}),
    )

    return Stage(
        name=f"score, {step.name}",
        role=Role.SCORE,
        step=step.name,
        does="score every caption by the frequency of its words",
        artifact=artifact,
        build=BuildScores(artifact, step, settings, words),
        scaling=CostScaling(num_tasks=by_part),
    )


@dataclass(frozen=True)
class BuildScores:
    """Builds the scores of all captions that reach the step."""

    artifact: Artifact
    step: Step
    settings: WfppStep
    words: Artifact

    def __call__(self, display: Display) -> Artifact:
        """Scores in actors, which read all words once."""
        PartsJob(
            self.artifact,
            part_rows(self.step.catalog),
            partial(CaptionScores.load, self.step.catalog, KeepList(self.step.incoming), self.words, self.settings),
            name=f"score, {self.step.name}",
            num_actors=self.step.num_actors or ray_cluster.num_cpus(),
        ).build(display)
        totals = self.artifact.totals
        counts = (totals["scored"], totals["no_words"])
        logger.info("%s: %d captions scored, %d of them without words", self.step.name, *counts)
        return self.artifact


@dataclass(frozen=True)
class CaptionScores:
    """The work on one part: the score of every caption that reached the step."""

    catalog: Catalog
    keep: KeepList
    table: WordTable
    settings: WfppStep

    @classmethod
    def load(cls, catalog: Catalog, keep: KeepList, words: Artifact, settings: WfppStep) -> CaptionScores:
        """Reads the words of all buckets: once in each actor."""
        probabilities = discard_probabilities(read_words(words), words.totals["kept_occurrences"], t=settings.t)
        return cls(catalog, keep, WordTable.from_probabilities(probabilities), settings)

    def __call__(self, part: PartRows) -> PartResult:
        """The part's scores, float64."""
        chunks = [
            scores(
                caption_words(captions),
                self.table,
                max_words=self.settings.max_words,
                length_normalised=self.settings.length_normalised,
                clip_negative=self.settings.clip_negative,
            )
            for captions in kept_captions(self.catalog, self.keep, part)
        ]
        values = np.concatenate(chunks) if chunks else np.empty(0)
        numbers = {"rows": part.num_rows, "scored": len(values), "no_words": int(np.isneginf(values).sum())}
        return PartResult({"parquet": to_parquet(pa.table({"score": values}))}, numbers)


@dataclass(frozen=True)
class WordScores:
    """Reads a part's scores, float64; -inf where a caption has no words."""

    scored: Artifact

    def __call__(self, index: int, rows: NDArray[np.int64]) -> Scores:
        """The scores of the pairs that reached the step."""
        return Scores(read_scores(self.scored, index))


def read_scores(scored: Artifact, index: int) -> NDArray[np.float64]:
    """The scores of a part's pairs that reached the step, in row order; -inf where a caption has no words."""
    return read_parquet(part_path(scored, index, "parquet"))["score"].to_numpy()


def _top_k(step: Step, column: ScoreColumn, num_wanted: int) -> TopK:
    # every pair has a score, so the number of pairs need not be counted
    return TopK(ScoreKeys(column), np.array([KeepList(step.incoming).num_pairs]), np.array([num_wanted]))
