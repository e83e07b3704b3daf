"""Durations: a stage's computing time over all commands that worked on it, and seconds as text.

The time so far is saved beside the parts until the stage is complete, so the report counts a stage that was interrupted
and resumed in full."""

from __future__ import annotations

import time

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json
from orchestrator.storage import files

# a killed command loses at most this many seconds of the count, and one write per interval is cheap in an object store
NOTE_SECONDS = 10.0
UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """Return seconds as text in the largest unit that gives at least 1: `<1 s`, `59.0 s`, `1.5 min`, `2.0 h`."""
    for length, unit in UNITS:
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return "<1 s"


class Stopwatch:
    """Counts the seconds of a stage, starting at what an interrupted command has saved."""

    def __init__(self, artifact: Artifact):
        self.uri = artifact.path("elapsed.json")
        self.is_saved = files.exists(self.uri)
        self.before = read_json(self.uri)["seconds"] if self.is_saved else 0.0
        self.started = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds so far, earlier commands included."""
        return self.before + time.monotonic() - self.started

    def save(self) -> None:
        """Save the count at most every `NOTE_SECONDS`. Call it as parts complete."""
        if time.monotonic() - self.saved >= NOTE_SECONDS:
            files.write_json(self.uri, {"seconds": round(self.seconds, 3)})
            self.is_saved, self.saved = True, time.monotonic()

    def remove(self) -> None:
        """Remove the saved count once the manifest holds it."""
        if self.is_saved:
            files.remove(self.uri)
