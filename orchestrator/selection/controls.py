"""The controls: `all` keeps every pair, `random` keeps a seeded draw. Neither has a score.

The random key of a pair is a hash of the step's name, the seed and the pair's ordinal, so the draw does not depend on
how the pool lies in parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import AllStep, RandomStep
from orchestrator.data.catalog import PartRows
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.engine.stage import Stage
from orchestrator.pruning.order import random_scores
from orchestrator.selection.budget import GroupedKeys, TopK, budget_stage
from orchestrator.selection.random_stream import seed_of, stream_input
from orchestrator.selection.score_column import FinishedStep, ScoreColumn


def stages(step: Step) -> list[Stage]:
    """The keep list of `random`. `all` has no stage: the keep list that reaches the step also leaves it."""
    settings = step.settings
    if isinstance(settings, AllStep):
        return []
    assert isinstance(settings, RandomStep)
    return [
        budget_stage(
            step,
            scored=None,
            top_k=partial(_top_k, step, seed_of(step)),
            does=f"keep a random draw (seed {settings.seed})",
            **stream_input(step, default="random"),
        )
    ]


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """None: a random key says nothing about a pair."""
    return None


def _top_k(step: Step, seed: int, num_wanted: int) -> TopK:
    return TopK(RandomKeys(seed), np.array([KeepList(step.incoming).num_pairs]), np.array([num_wanted]))


@dataclass(frozen=True)
class RandomKeys:
    """A random key for every pair."""

    seed: int

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> GroupedKeys:
        """Keys of the given rows."""
        return GroupedKeys(random_scores(self.seed, part.first_ordinal, part.num_rows)[rows], None)
