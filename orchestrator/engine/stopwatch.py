"""The seconds that a stage takes, over all the commands that it takes: noted beside its parts until it is whole, so
that a stage that was killed and went on costs in the report what it cost."""

from __future__ import annotations

import time

from orchestrator.engine.artifact import Artifact
from orchestrator.storage import files

# a kill loses as much, and the note costs one request in as long
NOTE_SECONDS = 10.0


class Elapsed:
    """A stopwatch that goes on where the one of an interrupted command was noted last."""

    def __init__(self, artifact: Artifact):
        self.uri = artifact.path("elapsed.json")
        self.is_noted = files.exists(self.uri)
        self.before = files.read_json(self.uri)["seconds"] if self.is_noted else 0.0
        self.started = self.noted = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return self.before + time.monotonic() - self.started

    def note(self) -> None:
        """Writes them down, every `NOTE_SECONDS`; to be called as work gets done."""
        if time.monotonic() - self.noted >= NOTE_SECONDS:
            files.write_json(self.uri, {"seconds": round(self.seconds, 3)})
            self.is_noted, self.noted = True, time.monotonic()

    def forget(self) -> None:
        """Removes the note: the manifest has them."""
        if self.is_noted:
            files.remove(self.uri)
