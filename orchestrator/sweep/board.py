"""The one table of a running sweep: trials tell an actor how far they are, the driver shows it."""

from __future__ import annotations

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
from orchestrator.sweep.warnings import Kind, Warned, WarningsFile, repeated, show

POLL_SECONDS = 2.0
TELL_SECONDS = 1.0
PLAIN_SECONDS = 60.0
COLUMNS = ("trial", "stage", "samples seen", "metric", "ETA")
WAITING, OVER = "waiting", ("finished", "stopped early", "failed")


@dataclass(frozen=True)
class Row:
    """How far a trial is: samples over all its phases, the latest of the metric, seconds since its first sample and how
    many samples there were by then."""

    stage: str = WAITING
    seen: int = 0
    total: int = 0
    metric: float | None = None
    seconds: float = 0.0
    since: int = 0

    @property
    def eta(self) -> float | None:
        """Seconds of training left at the pace so far; None before there is one."""
        pace = (self.seen - self.since) / self.seconds if self.seconds > 0 else 0.0
        return max(0, self.total - self.seen) / pace if pace > 0 and self.total and self.stage not in OVER else None


@ray.remote(num_cpus=0)
class Board:
    """Keeps the latest row of every trial, and what trials warn of."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.warned = Warned()

    def tell(self, name: str, row: Row) -> None:
        """Takes a trial's row."""
        self.rows[name] = row

    def end(self, name: str, stage: str) -> None:
        """Takes how a trial ended; the first word stands."""
        row = self.rows.get(name, Row())
        if row.stage not in OVER:
            self.rows[name] = replace(row, stage=stage)

    def read(self) -> dict[str, Row]:
        """All of them."""
        return self.rows

    def warn(self, name: str, text: str) -> None:
        """Takes a trial's warning."""
        self.warned.add(name, text)

    def warnings(self) -> list[Kind]:
        """Each kind of them."""
        return self.warned.read()


class TrialDisplay(Display):
    """In place of the console of a run: what a trial shows goes to the board, what it warns of to its folder `out` as
    well, what it measures to `measured`."""

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
        self.row, self.before = Row(total=total), 0
        self.began: float | None = None
        self.told = 0.0

    def warn(self, text: str) -> None:
        """To the sweep's user, and to the trial's folder."""
        self.warnings.add(text)
        self.board.warn.remote(self.name, text)

    @contextmanager
    def stage(self, name: str, *, unit: str = "pairs", total: int | None = None) -> Iterator[StageProgress]:
        """The progress of one stage, told to the board."""
        progress = _TrialStage(self, name, unit, total)
        self.tell(stage=name)
        yield progress
        if unit == "samples":
            self.before += progress.done

    def tell(self, **changes: Any) -> None:
        """Changes the trial's row; not every change is sent at once."""
        now = time.monotonic()
        if "seen" in changes and self.began is None:
            self.began, changes["since"] = now, changes["seen"]
        seconds = now - self.began if self.began is not None else 0.0
        self.row = replace(self.row, seconds=seconds, **changes)
        if "stage" in changes or "metric" in changes or now - self.told > TELL_SECONDS:
            self.told = now
            self.board.tell.remote(self.name, self.row)


class _TrialStage(StageProgress):
    def __init__(self, display: TrialDisplay, name: str, unit: str, total: int | None):
        super().__init__(name, unit, total, None, display.console)
        self.display = display

    def update(self, done: int, note: str = "", total: int | None = None, rate: float | None = None) -> None:
        self.done = done
        if self.unit == "samples":
            self.display.tell(seen=self.display.before + done)

    def measured(self, record: Mapping[str, float]) -> None:
        metric = self.display.metric
        if self.name == "pretrain" and metric in record:
            self.display.tell(metric=record[metric])
            # who has trained to the end is not stopped any more
            if record["samples_seen"] < (self.total or math.inf):
                self.display.measured({metric: record[metric], "samples_seen": record["samples_seen"]})


@contextmanager
def watched(board: Any, names: Sequence[str], metric: str, display: Display) -> Iterator[None]:
    """Shows the board while the block runs: a live table on a terminal, else the table once a minute, and a line for
    each trial that ends; of warnings the first of each kind at once, and at the end how often it came."""
    ended = threading.Event()
    follow = _live if display.console.is_terminal else _plain
    follower = threading.Thread(target=follow, args=(board, list(names), metric, display, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        # what ended the block may have been the loss of the cluster
        with suppress(ray.exceptions.RayError):
            for line in repeated(ray.get(board.warnings.remote())):
                display.line(line)


def _live(board: Any, names: list[str], metric: str, display: Display, ended: threading.Event) -> None:
    with Live(console=display.console, auto_refresh=False, vertical_overflow="visible") as live:
        shown = 0
        while True:
            over = ended.wait(POLL_SECONDS)
            shown = show(ray.get(board.warnings.remote()), display, shown=shown)
            live.update(_table(ray.get(board.read.remote()), names, metric), refresh=True)
            if over:
                return


def _plain(board: Any, names: list[str], metric: str, display: Display, ended: threading.Event) -> None:
    told: set[str] = set()
    shown, printed = 0, time.monotonic()
    while True:
        over, rows = ended.wait(POLL_SECONDS), ray.get(board.read.remote())
        shown = show(ray.get(board.warnings.remote()), display, shown=shown)
        for name, row in rows.items():
            if row.stage in OVER and name not in told:
                told.add(name)
                display.line(f"{name}: {row.stage}, {row.seen:,} samples{_of(metric, row)}")
        if not over and time.monotonic() - printed > PLAIN_SECONDS:
            printed = time.monotonic()
            display.console.print(_table(rows, names, metric), highlight=False, markup=False)
        if over:
            return


def _of(metric: str, row: Row) -> str:
    return "" if row.metric is None else f", {metric} {row.metric:.1%}"


def _table(rows: Mapping[str, Row], names: list[str], metric: str) -> Table:
    table = Table(header_style="bold")
    for column in COLUMNS:
        title = metric if column == "metric" else column
        table.add_column(title, overflow="fold", justify="right" if column in COLUMNS[2:] else "left")
    for name in dict.fromkeys([*names, *rows]):
        row = rows.get(name, Row())
        seen = f"{row.seen:,}{f' of {row.total:,}' if row.total else ''}" if row.seen else ""
        value = "" if row.metric is None else f"{row.metric:.1%}"
        table.add_row(name, row.stage, seen, value, "" if row.eta is None else f"{row.eta:,.0f} s")
    return table
