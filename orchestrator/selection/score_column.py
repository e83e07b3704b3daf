"""The score of a selection step, in one form for everything that reads it: the step's own threshold, the report, an
export and the Python API.

A method that ranks pairs, or compares them with a threshold, describes its score by a `ScoreColumn`. The column holds
no values: it names the artifact in which they lie and reads one part at a time. A finished run's columns are found
again from its record (`selection.score_columns`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact

Kept = Literal["highest", "lowest"]


class Scores(NamedTuple):
    """The scores of n pairs of a part.

    `values` float [n]: NaN where the pair has no score and cannot be kept; an infinity where the definition gives
    nothing to measure (a caption without words, a pair with no earlier one). `groups` int [n]: the cluster that a pair
    competes in, where each cluster has its own threshold; None where all pairs compete with each other."""

    values: NDArray[np.floating]
    groups: NDArray[np.integer] | None = None


ReadScores = Callable[[int, NDArray[np.int64]], Scores]
"""Takes the index of a part and the rows that reached the step, int64 [n] ascending. Returns their n scores in that
order. Picklable."""


@dataclass(frozen=True, kw_only=True)
class ScoreColumn:
    """The score of one step.

    `name` is the column in exports and in `Run.pairs`; `label` says what the score measures, and in which unit;
    `artifact` holds the values; `incoming` is the keep list that reached the step; `read` gives a part's values;
    `keeps` says which scores the step prefers."""

    name: str
    step: str
    label: str
    artifact: Artifact
    incoming: Artifact
    read: ReadScores
    keeps: Kept = "highest"

    def preference(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """The values with the sign that makes a higher number the better one, float [n]."""
        return values if self.keeps == "highest" else -values

    def of_part(self, index: int, num_rows: int) -> NDArray[np.float64]:
        """The score of every pair of a part, float64 [num_rows]: NaN where it has none or did not reach the step."""
        reached = KeepList(self.incoming).mask(index, num_rows)
        values = np.full(num_rows, np.nan)
        values[reached] = self.read(index, np.flatnonzero(reached)).values
        return values


@dataclass(frozen=True, kw_only=True)
class FinishedStep:
    """A step of a finished run, as its record describes it: `settings` as configured, the keep list that reached the
    step (`incoming`) and the one that left it (`outgoing`), and all artifacts of the run by fingerprint."""

    name: str
    settings: Mapping[str, Any]
    catalog: Catalog
    incoming: Artifact
    outgoing: Artifact
    artifacts: Mapping[str, Artifact]

    def source_of(self, *inputs: str) -> Artifact | None:
        """The artifact that a chain of inputs leads to, from the step's own keep list: `("scored", "stats")` is the
        `stats` input of its `scored` input. None where the record lacks one of them."""
        found: Artifact | None = self.outgoing
        for name in inputs:
            found = self.artifacts.get(found.made_from.get(name, "")) if found else None
        return found
