"""TensorBoard's event files of a phase, in any store.

TensorBoard appends each event to its file, which an object store does not support: one library reads and writes the
whole object per event, another keeps only the last event. For an object store, the file grows on a local disk and is
copied now and then."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from orchestrator.storage import files

COPY_SECONDS = 60.0


class TensorBoard:
    """The events of one session of a phase, in one file.

    A resumed phase writes a new file, which hides the events of earlier files for the steps that are trained again."""

    def __init__(self, uri: str, *, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.uri, self.copied = uri, time.monotonic()
        self.folder = None if files.is_local(uri) else tempfile.TemporaryDirectory()
        path = self.folder.name if self.folder else files.filesystem(uri)[1]
        self.writer: Any = SummaryWriter(path, purge_step=first_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add the values of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if self.folder and time.monotonic() - self.copied > COPY_SECONDS:
            self.writer.flush()
            files.copy(self.folder.name, self.uri)
            self.copied = time.monotonic()

    def close(self) -> None:
        """End the file and copy it to the store."""
        self.writer.close()
        if self.folder:
            files.copy(self.folder.name, self.uri)
            self.folder.cleanup()
