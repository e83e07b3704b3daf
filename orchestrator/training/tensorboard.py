"""TensorBoard's files of a phase, in any store.

TensorBoard appends each event, which an object store cannot: one library reads and writes the whole object for it,
another keeps the last event only. There the file grows on this machine's disk and is put in its place now and then."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from orchestrator.storage import files

COPY_SECONDS = 60.0


class TensorBoard:
    """The events of one session of a phase: each has a file of its own, which hides what an earlier one has logged of
    the steps that come again."""

    def __init__(self, uri: str, *, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.uri, self.copied = uri, time.monotonic()
        self.folder = None if files.is_local(uri) else tempfile.TemporaryDirectory()
        place = self.folder.name if self.folder else files.filesystem(uri)[1]
        self.writer: Any = SummaryWriter(place, purge_step=first_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Adds the values of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if self.folder and time.monotonic() - self.copied > COPY_SECONDS:
            self.writer.flush()
            files.copy(self.folder.name, self.uri)
            self.copied = time.monotonic()

    def close(self) -> None:
        """Ends the file."""
        self.writer.close()
        if self.folder:
            files.copy(self.folder.name, self.uri)
            self.folder.cleanup()
