"""What a sweep took over all the times it was started: noted in its folder while it runs, so that one that was killed
and goes on reports the whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from pydantic import Field

from orchestrator.report.entry import Entry
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.sweep.schema import SharedStage

SPENT_FILE = "spent.json"
NOTE_SECONDS = 30.0


class Spent(Entry):
    """When the sweep `started`, how often it was `resumed`, its `wall_seconds`, and by kind of stage before training
    how many it has `computed` and the `seconds` they took."""

    started: str
    resumed: int = 0
    wall_seconds: float = 0.0
    computed: dict[str, int] = Field(default={})
    seconds: dict[str, float] = Field(default={})


class Tally:
    """Counts from now on, on top of what the folder's note says where the sweep is resumed."""

    def __init__(self, out: str, *, resume: bool):
        self.place, self.began = files.join(out, SPENT_FILE), time.monotonic()
        self.counted: Callable[[], list[SharedStage]] = list
        self.before = Spent(started=datetime.now(UTC).isoformat(timespec="seconds"))
        if resume and files.exists(self.place):
            found = Spent.model_validate_json(files.read(self.place))
            self.before = found.model_copy(update={"resumed": found.resumed + 1})

    @contextmanager
    def noted(self, counted: Callable[[], list[SharedStage]]) -> Iterator[None]:
        """Keeps the folder's note up to date while the block runs; `counted` tells what is shared so far."""
        self.counted, over = counted, threading.Event()
        noting = threading.Thread(target=self._note, args=(over,), daemon=True)
        noting.start()
        try:
            yield
        finally:
            over.set()
            noting.join()

    def _note(self, over: threading.Event) -> None:
        while True:
            is_over = over.wait(NOTE_SECONDS)
            # a place that cannot be written is told by those who write what matters
            with suppress(StoreError):
                files.write(self.place, self.spent().model_dump_json().encode())
            if is_over:
                return

    def spent(self) -> Spent:
        """All of it, up to now."""
        shared = self.shared()
        return Spent(
            started=self.before.started,
            resumed=self.before.resumed,
            wall_seconds=round(self.before.wall_seconds + time.monotonic() - self.began, 1),
            computed={one.kind: one.computed for one in shared},
            seconds={one.kind: one.seconds for one in shared},
        )

    def shared(self) -> list[SharedStage]:
        """The stages before training, with what was computed before."""
        return [
            one.model_copy(
                update={
                    "computed": one.computed + self.before.computed.get(one.kind, 0),
                    "seconds": round(one.seconds + self.before.seconds.get(one.kind, 0.0), 2),
                }
            )
            for one in self.counted()
        ]
