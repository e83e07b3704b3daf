"""Random pruning, the control: the budget's highest keys, a key being a hash of the seed and the pair's ordinal."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import RandomStep
from orchestrator.data.catalog import PartRows
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.engine.stage import Stage
from orchestrator.pruning.random import random_scores
from orchestrator.selection.budget import Ranked, Ranking, budget_stage


def stages(step: Step) -> list[Stage]:
    """The keep list; there is nothing to compute before it."""
    settings = step.settings
    assert isinstance(settings, RandomStep)
    return [
        budget_stage(
            step,
            scored=None,
            ranking=partial(_ranking, step, settings.seed),
            does=f"keep a random draw (seed {settings.seed})",
        )
    ]


def _ranking(step: Step, seed: int, num_wanted: int) -> Ranking:
    return Ranking(partial(_rank, seed), np.array([KeepList(step.incoming).num_pairs]), np.array([num_wanted]))


def _rank(seed: int, part: PartRows, rows: NDArray[np.int64]) -> Ranked:
    return Ranked(random_scores(seed, part.first_ordinal, part.num_rows)[rows], None)
