"""What trials warn of: each kind of warning once, with the trial that told it first and how often it came."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.engine.console import Display
from orchestrator.storage import files
from orchestrator.storage.files import StoreError

FILE = "warnings.txt"
# all that tells apart warnings of one kind: ports, steps, counts
DIGITS = re.compile(r"\d+")
MAX_KINDS = 1000


@dataclass(frozen=True)
class Kind:
    """The first warning of its kind."""

    trial: str
    text: str
    times: int = 1


class Warned:
    """The kinds so far, in the order in which they came first."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}

    def add(self, trial: str, text: str) -> None:
        """Counts a trial's warning; beyond some number of kinds new ones are dropped."""
        key = DIGITS.sub("0", text)
        if key in self.kinds:
            self.kinds[key] = replace(self.kinds[key], times=self.kinds[key].times + 1)
        elif len(self.kinds) < MAX_KINDS:
            self.kinds[key] = Kind(trial, text)

    def read(self) -> list[Kind]:
        """All kinds."""
        return list(self.kinds.values())


class WarningsFile:
    """A trial's own warnings, all of them, a line each in its folder."""

    def __init__(self, out: str):
        self.place, self.lines = files.join(out, FILE), list[str]()

    def add(self, text: str) -> None:
        """Adds a line; that it cannot be written is no reason for the trial to end."""
        self.lines.append(" ".join(text.split()))
        with suppress(StoreError):
            files.write(self.place, "".join(f"{line}\n" for line in self.lines).encode())


def show(kinds: Sequence[Kind], display: Display, *, shown: int) -> int:
    """Tells the kinds that are new since so many were shown; how many that makes."""
    for kind in kinds[shown:]:
        display.line(f"{kind.trial}: {kind.text}")
    return len(kinds)


def repeated(kinds: Sequence[Kind]) -> Iterator[str]:
    """A line for each kind that came more than once."""
    for kind in kinds:
        if kind.times > 1:
            yield f"{kind.times:,} warnings like {kind.trial}'s ({FILE} in the trials' folders): {kind.text}"
