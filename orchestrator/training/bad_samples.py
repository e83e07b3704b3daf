"""Pairs that a training phase could not use: each keeps a masked slot, is counted on its rank, named, and held against
the limit by all ranks together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from orchestrator.training.agreement import AgreedError
from orchestrator.training.decoding import NO_CAPTION, Rows

MAX_EXAMPLES = 20


class Skipped(NamedTuple):
    """What one rank has taken in since it last told: samples skipped, those of them unreadable, some by name."""

    total: int
    unreadable: int
    examples: list[str]


class Skips:
    """The counts of a phase so far: `total` samples skipped, `unreadable` of them for their picture, some named."""

    def __init__(self, *, max_share: float):
        self.max_share = max_share
        self.total = self.unreadable = 0
        self.examples: list[str] = []
        self.own: list[tuple[str, str]] = []

    def add(self, rows: Rows) -> None:
        """Takes in this rank's share of a batch."""
        bad = ~rows["valid"]
        self.own += zip(rows["key"][bad].tolist(), rows["problem"][bad].tolist(), strict=True)

    def told(self) -> Skipped:
        """This rank's, since the last time."""
        unreadable = sum(problem != NO_CAPTION for _, problem in self.own)
        told = Skipped(len(self.own), unreadable, [f"{key}: {problem}" for key, problem in self.own[:MAX_EXAMPLES]])
        self.own.clear()
        return told

    def agree(self, of_all: Sequence[Skipped], phase: str, seen: int) -> None:
        """Adds up what all ranks told.

        Errors: `AgreedError` when clearly more than `max_share` of the samples `seen` were unreadable, `seen` counting
        the whole phase so far."""
        self.total += sum(one.total for one in of_all)
        self.unreadable += sum(one.unreadable for one in of_all)
        self.examples = (self.examples + [example for one in of_all for example in one.examples])[:MAX_EXAMPLES]
        # early on a few bad pairs may come together by chance: three standard deviations of it are no reason to stop
        expected = self.max_share * seen
        if self.unreadable > 1 + expected + 3 * math.sqrt(expected):
            raise AgreedError(
                f"{phase}: {self.unreadable:,} of {seen:,} samples could not be decoded "
                f"({'; '.join(self.examples[:3])}); mend the pool or raise training.max_bad_pairs"
            )

    def state(self) -> dict[str, Any]:
        """The counts, as they go into a checkpoint and the phase's summary."""
        return {"skipped": self.total, "unreadable": self.unreadable, "examples": self.examples}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up the counts of a checkpoint."""
        self.total, self.unreadable, self.examples = state["skipped"], state["unreadable"], list(state["examples"])
