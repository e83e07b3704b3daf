"""Samples that a training phase could not use: each keeps a masked slot, and all ranks together count them.

Too many of them end the phase."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from orchestrator.training.agreement import AgreedError
from orchestrator.training.decoding import NO_CAPTION, Rows

logger = logging.getLogger(__name__)
# examples that are kept by key, for the report and the error
MAX_EXAMPLES = 20


class NewBadSamples(NamedTuple):
    """One rank's bad samples since the last exchange: all, those with an unreadable image, and some by key."""

    total: int
    unreadable: int
    examples: list[str]


class BadSamples:
    """The counts of a phase so far, over all ranks: `total`, `unreadable` (because of the image), some by key."""

    def __init__(self, *, max_share: float, max_captionless: float = 1.0):
        self.max_share, self.max_captionless = max_share, max_captionless
        self.total = self.unreadable = 0
        self.examples: list[str] = []
        # of this rank, since the last exchange: key and problem
        self.own: list[tuple[str, str]] = []

    def add(self, rows: Rows) -> None:
        """Add the bad samples in this rank's share of a batch."""
        bad = ~rows["valid"]
        self.own += zip(rows["key"][bad].tolist(), rows["problem"][bad].tolist(), strict=True)

    def take_new(self) -> NewBadSamples:
        """Return this rank's bad samples since the last call."""
        unreadable = sum(problem != NO_CAPTION for _, problem in self.own)
        examples = [f"{key}: {problem}" for key, problem in self.own[:MAX_EXAMPLES]]
        new = NewBadSamples(len(self.own), unreadable, examples)
        self.own.clear()
        return new

    def merge(self, of_all: Sequence[NewBadSamples], phase: str, seen: int) -> None:
        """Add the new bad samples of all ranks; `seen` counts the samples of the whole phase so far.

        Errors: `AgreedError` when significantly more than `max_share` of them were unreadable, or significantly more
        than `max_captionless` had no caption. The catalog's limit is on the pool; a keep list may hold other pairs."""
        new = sum(one.total for one in of_all)
        self.total += new
        self.unreadable += sum(one.unreadable for one in of_all)
        self.examples = (self.examples + [example for one in of_all for example in one.examples])[:MAX_EXAMPLES]
        if new:
            logger.info("%s: %d bad samples more, %d of %d samples in all", phase, new, self.total, seen)
        if self.unreadable > _limit(self.max_share, seen):
            raise AgreedError(
                f"{phase}: {self.unreadable:,} of {seen:,} samples could not be decoded "
                f"({'; '.join(self.examples[:3])}); fix the data or raise training.max_bad_pairs"
            )
        captionless = self.total - self.unreadable
        if captionless > _limit(self.max_captionless, seen):
            raise AgreedError(
                f"{phase}: {captionless:,} of {seen:,} samples have no caption ({'; '.join(self.examples[:3])}); "
                "select pairs with captions or raise source.limits.max_captionless"
            )

    def state(self) -> dict[str, Any]:
        """Return the counts for a checkpoint and the phase's summary."""
        return {"skipped": self.total, "unreadable": self.unreadable, "examples": self.examples}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the counts of a checkpoint."""
        self.total, self.unreadable, self.examples = state["skipped"], state["unreadable"], list(state["examples"])


def _limit(share: float, seen: int) -> float:
    # three standard deviations above the expected count: early in a phase, a few bad samples can be chance
    return 1 + share * seen + 3 * math.sqrt(share * seen)
