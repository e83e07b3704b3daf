"""The warnings of trials: the user sees each kind once, with the trial that raised it first and a count at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.engine.console import Display
from orchestrator.storage import files
from orchestrator.storage.files import StoreError

FILE = "warnings.txt"
# warnings of one kind differ only in numbers: ports, steps, counts
DIGITS = re.compile(r"\d+")
MAX_KINDS = 1000


@dataclass(frozen=True)
class WarningKind:
    """The first warning of its kind, the trial that raised it, and how many there were."""

    trial: str
    text: str
    times: int = 1


class WarningCounts:
    """The kinds of warnings so far, in the order in which they first came."""

    def __init__(self) -> None:
        self.by_pattern: dict[str, WarningKind] = {}

    def add(self, trial: str, text: str) -> None:
        """Count a trial's warning; beyond `MAX_KINDS` kinds, new kinds are dropped."""
        pattern = DIGITS.sub("0", text)
        if pattern in self.by_pattern:
            known = self.by_pattern[pattern]
            self.by_pattern[pattern] = replace(known, times=known.times + 1)
        elif len(self.by_pattern) < MAX_KINDS:
            self.by_pattern[pattern] = WarningKind(trial, text)

    def kinds(self) -> list[WarningKind]:
        """Return all kinds."""
        return list(self.by_pattern.values())


class WarningsFile:
    """All warnings of one trial, one a line, in the trial's folder."""

    def __init__(self, out: str):
        self.path, self.lines = files.join(out, FILE), list[str]()

    def add(self, text: str) -> None:
        """Add a line; if the file cannot be written, the trial still runs."""
        self.lines.append(" ".join(text.split()))
        with suppress(StoreError):
            files.write(self.path, "".join(f"{line}\n" for line in self.lines).encode())


def show_new(kinds: Sequence[WarningKind], display: Display, *, num_shown: int) -> int:
    """Print the kinds that came after the first `num_shown`; return how many are shown now."""
    for kind in kinds[num_shown:]:
        display.warn(f"{kind.trial}: {kind.text}")
    return len(kinds)


def repeated(kinds: Sequence[WarningKind]) -> Iterator[str]:
    """Yield a line for each kind that came more than once."""
    for kind in kinds:
        if kind.times > 1:
            yield f"{kind.times:,} warnings like {kind.trial}'s ({FILE} in the trials' folders): {kind.text}"
