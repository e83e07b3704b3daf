"""The checkpoints of a phase: one file each, written whole or not at all, in a thread in parallel with the steps.

A phase resumes from the newest readable file. Unreadable files (cut off, damaged) are reported, and the previous one is
used."""

from __future__ import annotations

import logging
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.clip import checkpoint
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.training.checkpoint_names import CHECKPOINT

logger = logging.getLogger(__name__)
# the suffixes of temporary files: of `checkpoint.save` on local disks, of `files` elsewhere
UNFINISHED = (".partial", files.TEMPORARY)


class Newest(NamedTuple):
    """The newest readable checkpoint: its file name (None: there is none), its content, and a line for each problem.

    A problem is a newer file that is damaged."""

    name: str | None
    saved: dict[str, Any]
    problems: list[str]


class Checkpoints:
    """Writes and finds the checkpoints in a folder; keeps the `keep` newest."""

    def __init__(self, uri: str, *, keep: int):
        self.uri, self.keep = uri, keep
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def names(self) -> list[str]:
        """Return the file names, oldest first."""
        return [name for name in files.names(self.uri) if CHECKPOINT.fullmatch(name)]

    def newest(self) -> Newest:
        """Return the newest readable checkpoint, and a line for each newer one that is unreadable."""
        problems: list[str] = []
        for name in reversed(self.names()):
            try:
                return Newest(name, self.load(name), problems)
            except ValueError as error:
                problems.append(f"unreadable checkpoint, using the one before it: {error}")
        return Newest(None, {}, problems)

    def remove_newer(self, name: str | None) -> None:
        """Remove checkpoints newer than `name` (None: all), and unfinished files of a killed writer.

        Damaged files would otherwise count among the newest ones that are kept."""
        for other in files.names(self.uri):
            if other.endswith(UNFINISHED) or (CHECKPOINT.fullmatch(other) and (name is None or other > name)):
                files.remove(files.join(self.uri, other))

    def load(self, name: str) -> dict[str, Any]:
        """Return the content of a checkpoint. Errors: `ValueError` for a file that is cut off or damaged."""
        if files.is_local(self.uri):
            return checkpoint.load(Path(files.join(self.uri, name)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            files.get_file(files.join(self.uri, name), str(path))
            return checkpoint.load(path)

    def save(self, step: int, saved: dict[str, Any]) -> None:
        """Start to write the state after `step` steps, after the previous write has ended.

        `saved` must not change any more. Errors: `StoreError` when the previous write failed."""
        self.wait()
        self.writing = self.writer.submit(self._write, f"step_{step:012d}.pt", saved)

    def check(self) -> None:
        """Raise the error of the last write if it has failed already. Errors: `StoreError`."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last write has ended. Errors: `StoreError` when it failed."""
        if self.writing is not None:
            done, self.writing = self.writing, None
            done.result()

    def _write(self, name: str, saved: dict[str, Any]) -> None:
        target = files.join(self.uri, name)
        try:
            if files.is_local(self.uri):
                checkpoint.save(saved, Path(target))
            else:
                with tempfile.TemporaryDirectory() as folder:
                    checkpoint.save(saved, Path(folder) / name)
                    files.put_file(str(Path(folder) / name), target)
        except (OSError, RuntimeError) as error:
            # torch's writer replaces the system's error by one of its own
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())
            raise StoreError(
                f"cannot write the checkpoint {target}: {reason}; expected a writable URI with enough space"
            ) from error
        logger.info("wrote checkpoint %s", target)
        # a file that cannot be removed now is removed after the next checkpoint
        with suppress(OSError):
            for old in self.names()[: -self.keep]:
                files.remove(files.join(self.uri, old))
