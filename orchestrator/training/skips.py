"""Pairs that a training phase could not use: each keeps a masked slot, is counted on its rank, named, and held against
the limit by all ranks together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch.distributed as dist

from orchestrator.errors import UserError
from orchestrator.training.feed import NO_CAPTION, Rows

MAX_EXAMPLES = 20
FILE = "skipped.json"


class Skips:
    """The counts of a phase so far: `total` samples skipped, `unreadable` of them for their picture, some named."""

    def __init__(self, *, num_ranks: int, max_share: float):
        self.num_ranks, self.max_share = num_ranks, max_share
        self.total = self.unreadable = 0
        self.examples: list[str] = []
        self.own: list[tuple[str, str]] = []

    def add(self, rows: Rows) -> None:
        """Takes in this rank's share of a batch."""
        bad = ~rows["valid"]
        self.own += zip(rows["key"][bad].tolist(), rows["problem"][bad].tolist(), strict=True)

    def agree(self, phase: str, seen: int) -> None:
        """Adds up what all ranks have taken in since the last time; every rank calls it at the same step.

        Errors: `UserError` on all ranks alike when clearly more than `max_share` of the samples `seen` were unreadable,
        `seen` counting the whole phase so far."""
        unreadable = sum(problem != NO_CAPTION for _, problem in self.own)
        told = (len(self.own), unreadable, [f"{key}: {problem}" for key, problem in self.own[:MAX_EXAMPLES]])
        gathered: list[Any] = [told]
        if self.num_ranks > 1:
            gathered = [None] * self.num_ranks
            dist.all_gather_object(gathered, told)
        self.own.clear()
        self.total += sum(count for count, _, _ in gathered)
        self.unreadable += sum(count for _, count, _ in gathered)
        self.examples = (self.examples + [one for _, _, examples in gathered for one in examples])[:MAX_EXAMPLES]
        # early on a few bad pairs may come together by chance: three standard deviations of it are no reason to stop
        expected = self.max_share * seen
        if self.unreadable > 1 + expected + 3 * math.sqrt(expected):
            raise UserError(
                f"{phase}: {self.unreadable:,} of {seen:,} samples could not be decoded "
                f"({'; '.join(self.examples[:3])}); mend the pool or raise training.max_bad_pairs"
            )

    def save(self, folder: Path) -> None:
        """Writes the counts beside a checkpoint."""
        told = {"total": self.total, "unreadable": self.unreadable, "examples": self.examples}
        (folder / FILE).write_text(json.dumps(told))

    def restore(self, folder: Path) -> None:
        """Takes up the counts of a checkpoint."""
        told = json.loads((folder / FILE).read_text())
        self.total, self.unreadable, self.examples = told["total"], told["unreadable"], told["examples"]
