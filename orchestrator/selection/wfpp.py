"""WFPP as stages: count words, sum them, score every caption in CPU actors, cut at the budget (arXiv 2410.10879)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.config import WfppStep
from orchestrator.data.catalog import Catalog, PartRows, part_rows, to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_part
from orchestrator.pruning.caption_words import caption_words
from orchestrator.pruning.threshold import sortable
from orchestrator.pruning.wfpp import WordTable, discard_probabilities, scores
from orchestrator.selection.budget import Ranked, Ranking, budget_stage
from orchestrator.selection.word_counts import count_stage, kept_captions, read_words, words_stage
from orchestrator.storage import files

VERSION = 1


def stages(step: Step) -> list[Stage]:
    """Counts, words, scores and the keep list; all but the last serve every keep fraction."""
    settings = step.settings
    assert isinstance(settings, WfppStep)
    count = count_stage(step.store_uri, step.catalog, step.incoming, label=step.name)
    words = words_stage(step.store_uri, step.catalog, count.artifact, min_count=settings.min_count, label=step.name)
    score = _score_stage(step, settings, words.artifact)
    cut = budget_stage(
        step,
        scored=score.artifact,
        ranking=partial(_ranking, step, score.artifact),
        does="keep the highest word-frequency scores",
    )
    return [count, words, score, cut]


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

    def build(display: Display) -> Artifact:
        work = partial(_score_work, step.catalog, KeepList(step.incoming), words, settings)
        return build_parts(
            artifact,
            part_rows(step.catalog),
            work,
            display=display,
            name=f"score, {step.name}",
            num_actors=step.num_actors or ray_cluster.num_cpus(),
        )

    return Stage(
        name=f"score, {step.name}",
        role=Role.SCORE,
        step=step.name,
        does="score every caption by the frequency of its words",
        artifact=artifact,
        build=build,
        scaling=CostScaling(num_tasks=by_part),
    )


def _score_work(catalog: Catalog, keep: KeepList, words: Artifact, settings: WfppStep) -> Work:
    total = words.totals["kept_occurrences"]
    table = WordTable.from_probabilities(discard_probabilities(read_words(words), total, t=settings.t))

    def work(part: PartRows) -> PartResult:
        chunks = [
            scores(
                caption_words(captions),
                table,
                max_words=settings.max_words,
                length_normalised=settings.length_normalised,
                clip_negative=settings.clip_negative,
            )
            for captions in kept_captions(catalog, keep, part)
        ]
        values = np.concatenate(chunks) if chunks else np.empty(0)
        numbers = {"rows": part.num_rows, "scored": len(values), "no_words": int(np.isneginf(values).sum())}
        return PartResult({"parquet": to_parquet(pa.table({"score": values}))}, numbers)

    return work


def read_scores(scored: Artifact, index: int) -> NDArray[np.float64]:
    """The scores of a part's pairs that reached the step, in row order; -inf where a caption has no words."""
    return pq.read_table(pa.BufferReader(files.read(part_path(scored, index, "parquet"))))["score"].to_numpy()


def _ranking(step: Step, scored: Artifact, num_wanted: int) -> Ranking:
    return Ranking(partial(_rank, scored), np.array([KeepList(step.incoming).num_pairs]), np.array([num_wanted]))


def _rank(scored: Artifact, part: PartRows, rows: NDArray[np.int64]) -> Ranked:
    return Ranked(sortable(read_scores(scored, part.index)), None)
