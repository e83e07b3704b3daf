"""The time that a sweep took over all its starts. The sweep's folder keeps it while the sweep runs, so that one that
was killed and resumed reports the whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from pydantic import Field

from orchestrator.report.schema_pairs import Entry
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.sweep.report.schema import SharedStage

ELAPSED_FILE = "spent.json"
WRITE_SECONDS = 30.0


class Elapsed(Entry):
    """When the sweep first `started` (ISO 8601), how often it was `resumed`, its `wall_seconds`; by kind of stage
    before training, how many it has `computed` and the `seconds` that they took."""

    started: str
    resumed: int = 0
    wall_seconds: float = 0.0
    computed: dict[str, int] = Field(default={})
    seconds: dict[str, float] = Field(default={})


class SweepTimer:
    """Counts from now on; if the sweep is resumed, on top of what its folder says."""

    def __init__(self, out: str, *, resume: bool):
        self.path, self.started = files.join(out, ELAPSED_FILE), time.monotonic()
        self.counts: Callable[[], list[SharedStage]] = list
        self.before = Elapsed(started=datetime.now(UTC).isoformat(timespec="seconds"))
        if resume and files.exists(self.path):
            found = Elapsed.model_validate_json(files.read(self.path))
            self.before = found.model_copy(update={"resumed": found.resumed + 1})

    @contextmanager
    def recording(self, counts: Callable[[], list[SharedStage]]) -> Iterator[None]:
        """Keep the file in the sweep's folder up to date while the block runs; `counts`: the shared stages so far."""
        self.counts, ended = counts, threading.Event()
        writer = threading.Thread(target=self._write_often, args=(ended,), daemon=True)
        writer.start()
        try:
            yield
        finally:
            ended.set()
            writer.join()

    def _write_often(self, ended: threading.Event) -> None:
        while True:
            is_last = ended.wait(WRITE_SECONDS)
            # a full or read-only folder also fails the writes that a sweep cannot do without, and they report it
            with suppress(StoreError):
                files.write(self.path, self.elapsed().model_dump_json().encode())
            if is_last:
                return

    def elapsed(self) -> Elapsed:
        """Return the time of all starts, up to now."""
        shared = self.shared()
        return Elapsed(
            started=self.before.started,
            resumed=self.before.resumed,
            wall_seconds=round(self.before.wall_seconds + time.monotonic() - self.started, 1),
            computed={one.kind: one.computed for one in shared},
            seconds={one.kind: one.seconds for one in shared},
        )

    def shared(self) -> list[SharedStage]:
        """Return the stages before training, with what earlier starts computed."""
        return [
            one.model_copy(
                update={
                    "computed": one.computed + self.before.computed.get(one.kind, 0),
                    "seconds": round(one.seconds + self.before.seconds.get(one.kind, 0.0), 2),
                }
            )
            for one in self.counts()
        ]
