"""The live table of a running sweep: trials send their progress to an actor, and the driver shows it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.engine.console import Display, StageProgress
from orchestrator.sweep.warnings import WarningCounts, WarningKind, WarningsFile, repeated, show_new

logger = logging.getLogger(__name__)
POLL_SECONDS = 2.0
SEND_SECONDS = 1.0
PLAIN_SECONDS = 60.0
COLUMNS = ("trial", "stage", "samples seen", "metric", "ETA")
WAITING, ENDED = "waiting", ("finished", "stopped early", "failed")


@dataclass(frozen=True)
class TrialRow:
    """The progress of a trial: its stage, the samples `seen` over all phases out of `total`, the latest value of the
    metric. `seconds` have passed since the first sample of this attempt, before which there were `since` samples."""

    stage: str = WAITING
    seen: int = 0
    total: int = 0
    metric: float | None = None
    seconds: float = 0.0
    since: int = 0

    @property
    def eta(self) -> float | None:
        """Seconds of training left at the rate so far; None before there is one."""
        rate = (self.seen - self.since) / self.seconds if self.seconds > 0 else 0.0
        return max(0, self.total - self.seen) / rate if rate > 0 and self.total and self.stage not in ENDED else None


@ray.remote(num_cpus=0)
class Board:
    """Keeps the latest row of every trial, and the warnings of all trials."""

    def __init__(self) -> None:
        self.rows: dict[str, TrialRow] = {}
        self.counts = WarningCounts()

    def update(self, name: str, row: TrialRow) -> None:
        """Replace a trial's row."""
        self.rows[name] = row

    def end(self, name: str, stage: str) -> None:
        """Set the last stage of a trial, unless the trial itself has set one."""
        row = self.rows.get(name, TrialRow())
        if row.stage not in ENDED:
            self.rows[name] = replace(row, stage=stage)

    def read(self) -> dict[str, TrialRow]:
        """Return all rows by trial."""
        return self.rows

    def warn(self, name: str, text: str) -> None:
        """Count a trial's warning."""
        self.counts.add(name, text)

    def warnings(self) -> list[WarningKind]:
        """Return each kind of warning."""
        return self.counts.kinds()


class TrialDisplay(Display):
    """The display of a trial's process: progress goes to the board, warnings also to the trial's folder `out`, and
    evaluations during pre-training to `measured`."""

    def __init__(
        self,
        name: str,
        board: Any,
        *,
        out: str,
        total: int,
        metric: str,
        measured: Callable[[dict[str, float]], None],
    ):
        super().__init__(Console(quiet=True))
        self.warnings = WarningsFile(out)
        self.name, self.board, self.metric, self.measured = name, board, metric, measured
        self.row, self.seen_before = TrialRow(total=total), 0
        self.started: float | None = None
        self.sent = 0.0

    def warn(self, text: str) -> None:
        """Send a warning to the user of the sweep, and keep it in the trial's folder."""
        logger.warning("%s", text)
        self.warnings.add(text)
        self.board.warn.remote(self.name, text)

    @contextmanager
    def stage(self, name: str, *, unit: str = "pairs", total: int | None = None) -> Iterator[StageProgress]:
        """The progress of one stage, sent to the board."""
        progress = _TrialStage(self, name, unit, total)
        self.send(stage=name)
        yield progress
        if unit == "samples":
            self.seen_before += progress.done

    def send(self, **changes: Any) -> None:
        """Change the trial's row; the number of samples alone is sent at most once in `SEND_SECONDS`."""
        now = time.monotonic()
        if "seen" in changes and self.started is None:
            self.started, changes["since"] = now, changes["seen"]
        seconds = now - self.started if self.started is not None else 0.0
        self.row = replace(self.row, seconds=seconds, **changes)
        if "stage" in changes or "metric" in changes or now - self.sent > SEND_SECONDS:
            self.sent = now
            self.board.update.remote(self.name, self.row)


class _TrialStage(StageProgress):
    def __init__(self, display: TrialDisplay, name: str, unit: str, total: int | None):
        super().__init__(name, unit, total, None, display.console)
        self.display = display

    def update(self, done: int, note: str = "", total: int | None = None, rate: float | None = None) -> None:
        self.done = done
        if self.unit == "samples":
            self.display.send(seen=self.display.seen_before + done)

    def measured(self, record: Mapping[str, float]) -> None:
        metric = self.display.metric
        if self.name == "pretrain" and metric in record:
            self.display.send(metric=record[metric])
            # the scheduler must not stop a trial that has trained to its end
            if record["samples_seen"] < (self.total or math.inf):
                self.display.measured({metric: record[metric], "samples_seen": record["samples_seen"]})


@contextmanager
def shown(board: Any, names: Sequence[str], metric: str, display: Display) -> Iterator[None]:
    """Show the board while the block runs.

    On a terminal this is a live table; elsewhere the table once a minute, and a line for each trial that ends. The
    first warning of each kind is shown at once, and at the end how often the kind came."""
    ended = threading.Event()
    follow = _live if display.console.is_terminal else _plain
    follower = threading.Thread(target=follow, args=(board, list(names), metric, display, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        # the block may have ended because the cluster was lost
        with suppress(ray.exceptions.RayError):
            for line in repeated(ray.get(board.warnings.remote())):
                display.line(line)


def _live(board: Any, names: list[str], metric: str, display: Display, ended: threading.Event) -> None:
    with Live(console=display.console, auto_refresh=False, vertical_overflow="visible") as live:
        num_shown = 0
        while True:
            is_last = ended.wait(POLL_SECONDS)
            num_shown = show_new(ray.get(board.warnings.remote()), display, num_shown=num_shown)
            live.update(_table(ray.get(board.read.remote()), names, metric), refresh=True)
            if is_last:
                return


def _plain(board: Any, names: list[str], metric: str, display: Display, ended: threading.Event) -> None:
    printed: set[str] = set()
    num_shown, table_printed = 0, time.monotonic()
    while True:
        is_last, rows = ended.wait(POLL_SECONDS), ray.get(board.read.remote())
        num_shown = show_new(ray.get(board.warnings.remote()), display, num_shown=num_shown)
        for name, row in rows.items():
            if row.stage in ENDED and name not in printed:
                printed.add(name)
                display.line(f"{name}: {row.stage}, {row.seen:,} samples{_metric_text(metric, row)}")
        if is_last:
            return
        if time.monotonic() - table_printed > PLAIN_SECONDS:
            table_printed = time.monotonic()
            display.console.print(_table(rows, names, metric), highlight=False, markup=False)


def _metric_text(metric: str, row: TrialRow) -> str:
    return "" if row.metric is None else f", {metric} {row.metric:.1%}"


def _table(rows: Mapping[str, TrialRow], names: list[str], metric: str) -> Table:
    table = Table(header_style="bold")
    for column in COLUMNS:
        title = metric if column == "metric" else column
        table.add_column(title, overflow="fold", justify="right" if column in COLUMNS[2:] else "left")
    for name in dict.fromkeys([*names, *rows]):
        row = rows.get(name, TrialRow())
        seen = f"{row.seen:,}{f' of {row.total:,}' if row.total else ''}" if row.seen else ""
        value = "" if row.metric is None else f"{row.metric:.1%}"
        table.add_row(name, row.stage, seen, value, "" if row.eta is None else f"{row.eta:,.0f} s")
    return table
