"""The checkpoints of a phase: a file each, written in a thread beside the steps, whole or not at all.

A phase goes on from the newest file that can be read; what cannot be read (cut off, damaged) is told, and the one
before it taken."""

from __future__ import annotations

import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.clip import checkpoint
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.training.checkpoint_names import CHECKPOINT

# by `checkpoint.save` on disks, and by `store` where it renames elsewhere
UNFINISHED = (".partial", files.TEMPORARY)


class Newest(NamedTuple):
    """A checkpoint's file (None: there is none) and what it holds, with a line for each newer one that is damaged."""

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
        """The files' names, oldest first."""
        return [name for name in files.names(self.uri) if CHECKPOINT.fullmatch(name)]

    def newest(self) -> Newest:
        """The newest file that can be read, what it holds, and a line for each newer one that cannot."""
        problems: list[str] = []
        for name in reversed(self.names()):
            try:
                return Newest(name, self.load(name), problems)
            except ValueError as error:
                problems.append(f"a checkpoint cannot be read, the one before it is taken: {error}")
        return Newest(None, {}, problems)

    def go_on_from(self, name: str | None) -> None:
        """Removes what is newer than the file that was taken (None: all), and what a killed writer left unfinished:
        else the damaged would be counted among the newest that are kept."""
        for other in files.names(self.uri):
            if other.endswith(UNFINISHED) or (CHECKPOINT.fullmatch(other) and (name is None or other > name)):
                files.remove(files.join(self.uri, other))

    def load(self, name: str) -> dict[str, Any]:
        """What was saved. Errors: `ValueError` for a file that is cut off or damaged."""
        if files.is_local(self.uri):
            return checkpoint.load(Path(files.join(self.uri, name)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            files.get_file(files.join(self.uri, name), str(path))
            return checkpoint.load(path)

    def save(self, step: int, saved: dict[str, Any]) -> None:
        """Begins to write the state after `step` steps, once the write before it has ended.

        `saved` must not change any more. Errors: `StoreError` when the write before it failed."""
        self.wait()
        self.writing = self.writer.submit(self._write, f"step_{step:012d}.pt", saved)

    def check(self) -> None:
        """Errors: `StoreError` when the last write has ended, and badly."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def wait(self) -> None:
        """Until the last write has ended. Errors: `StoreError` when it failed."""
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
            # torch's writer turns the system's error into one of its own
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())
            raise StoreError(f"cannot write the checkpoint {target}: {reason}; expected a place with room") from error
        # one that cannot be removed now is removed after the next
        with suppress(OSError):
            for old in self.names()[: -self.keep]:
                files.remove(files.join(self.uri, old))
