"""Random pruning, the control: the budget's highest keys, a key being a hash of the seed and the pair's ordinal."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.catalog import PartRows
from orchestrator.config import RandomStep
from orchestrator.pruning.random import random_scores
from orchestrator.selection.budget import budget_stage
from orchestrator.stage import Stage
from orchestrator.step import Step


def stages(step: Step) -> list[Stage]:
    """The keep list; there is nothing to compute before it."""
    settings = step.settings
    assert isinstance(settings, RandomStep)
    return [
        budget_stage(
            step,
            scored=None,
            keys_of=partial(_keys_of, settings.seed),
            keep_fraction=settings.keep_fraction,
            does=f"keep a random draw (seed {settings.seed})",
        )
    ]


def _keys_of(seed: int, part: PartRows, ordinals: NDArray[np.int64]) -> NDArray[np.uint64]:
    return random_scores(seed, part.first_ordinal, part.num_rows)[ordinals - part.first_ordinal]
