"""The console of a command: a live display on a terminal, plain lines on a pipe. Every line also goes to the log."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

logger = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0
PLAIN_WIDTH = 160
# the rate and the remaining time follow from the progress of the last minute: a rate over the whole stage would include
# its slow start
RATE_SECONDS = 60.0


class RecentRate:
    """The units per second over the last minute of progress."""

    def __init__(self) -> None:
        self.marks: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """Add `done` units at the time `now`, in seconds. Calls without progress change nothing."""
        if self.marks and done <= self.marks[-1][1]:
            return
        self.marks.append((now, done))
        # two marks stay, however old: a stage with rare updates still has a rate
        while len(self.marks) > 2 and now - self.marks[1][0] >= RATE_SECONDS:
            self.marks.popleft()

    @property
    def per_second(self) -> float:
        """The rate; 0 until there are two marks. The first mark is where a resumed stage starts."""
        if len(self.marks) < 2:
            return 0.0
        (first, before), (last, done) = self.marks[0], self.marks[-1]
        return (done - before) / max(last - first, 1e-9)


class StageProgress:
    """The counter of one stage. Call `update` with the number of units done so far."""

    def __init__(self, name: str, unit: str, total: int | None, bar: Progress | None, console: Console):
        self.name, self.unit, self.total, self.bar, self.console = name, unit, total, bar, console
        self.started = self.printed = time.monotonic()
        self.recent = RecentRate()
        self.measured_rate: float | None = None
        self.done, self.note = 0, ""
        self.last_line = ""
        self.task: TaskID | None = bar.add_task(name, total=total, rate="", note="") if bar else None

    def update(self, done: int, note: str = "", total: int | None = None, rate: float | None = None) -> None:
        """Set the units done so far (a resumed stage starts above 0), a note such as the loss, and the total.

        `rate`: units per second that the caller has measured itself; by default the rate of the last minute."""
        now = time.monotonic()
        self.recent.add(now, done)
        self.done, self.note, self.total, self.measured_rate = done, note, total or self.total, rate
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=self.total, rate=self._rate(), note=note)
        elif now - self.printed >= PLAIN_SECONDS:
            self._print(now)

    def show(self) -> None:
        """Print a plain line now, however short ago the last one was; a bar shows the update already."""
        if self.bar is None:
            self._print(time.monotonic())

    def measured(self, record: Mapping[str, float]) -> None:
        """Take the metrics of an evaluation during training. A sweep's display overrides this."""

    def finish(self) -> None:
        """Print the stage's last line."""
        seconds = time.monotonic() - self.started
        counted = f"{self.done:,} {self.unit}, " if self.done else ""
        note = f", {self.note}" if self.note else ""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, visible=False)
        line = f"{self.name}: done, {counted}{seconds:.1f} s{note}"
        logger.info("%s", line)
        self.console.print(line, highlight=False, soft_wrap=True)

    def _print(self, now: float) -> None:
        # an update without progress has nothing new to print
        line = self._line()
        if line == self.last_line:
            return
        self.printed, self.last_line = now, line
        logger.info("%s", line)
        self.console.print(line, highlight=False, soft_wrap=True)

    @property
    def per_second(self) -> float:
        """The current rate, in units per second; 0 while it is unknown."""
        return self.recent.per_second if self.measured_rate is None else self.measured_rate

    def _rate(self) -> str:
        rate = self.per_second
        return f"{rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s" if rate > 0 else ""

    def _line(self) -> str:
        of, rate = f"/{self.total:,}" if self.total else "", self.per_second
        eta = f"ETA {(self.total - self.done) / rate:,.0f} s" if self.total and rate > 0 else ""
        fields = [f"{self.done:,}{of} {self.unit}", self._rate(), eta, self.note]
        return f"{self.name}: {', '.join(filter(None, fields))}"


class Display:
    """The console of one command."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH

    def line(self, text: str) -> None:
        """Print a line."""
        logger.info("%s", text)
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        """Print a line about a problem that does not stop the command."""
        logger.warning("%s", text)
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a small table. Cells are shown whole, folded on a narrow terminal."""
        table = Table(title=title, title_justify="left", header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
            logger.info("%s: %s", title, _log_line(columns, row))
        self.console.print(table, highlight=False, markup=False)

    @contextmanager
    def stage(self, name: str, *, unit: str = "pairs", total: int | None = None) -> Iterator[StageProgress]:
        """Show the progress of one stage while the block runs."""
        if not self.console.is_terminal:
            self.line(f"{name} ...")
            progress = StageProgress(name, unit, total, None, self.console)
            yield progress
            progress.finish()
            return
        logger.info("%s ...", name)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            progress = StageProgress(name, unit, total, bar, self.console)
            yield progress
            progress.finish()


def _log_line(columns: Sequence[str], row: Sequence[str]) -> str:
    # the first cell names the row
    if len(row) == 2:
        return f"{row[0]}: {row[1]}"
    return f"{row[0]}: {', '.join(f'{name} {cell}' for name, cell in zip(columns[1:], row[1:], strict=False))}"
