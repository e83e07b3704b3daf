"""What the user sees while a run goes on: one live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_SECONDS = 10.0
PLAIN_WIDTH = 160


class StageProgress:
    """One stage's counter: `update` with what is done so far, in the stage's unit."""

    def __init__(self, name: str, unit: str, total: int | None, bar: Progress | None, console: Console):
        self.name, self.unit, self.total, self.bar, self.console = name, unit, total, bar, console
        self.started = self.printed = time.monotonic()
        self.first: tuple[float, int] | None = None
        self.done, self.note = 0, ""
        self.task: TaskID | None = bar.add_task(name, total=total, rate="", note="") if bar else None

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """`done` units so far (a resumed stage starts above 0), a note such as the loss, the total once it is known."""
        # the rate counts from the first number: what came before was starting up, or another run's work
        self.first = self.first or (time.monotonic(), done)
        self.done, self.note, self.total = done, note, total or self.total
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=self.total, rate=self._rate(), note=note)
        elif time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            self.console.print(self._line(), highlight=False, soft_wrap=True)

    def measured(self, record: Mapping[str, float]) -> None:
        """An evaluation on the way; whoever shows the stage may make something of it."""

    def finish(self) -> None:
        """The stage's last line."""
        seconds = time.monotonic() - self.started
        counted = f"{self.done:,} {self.unit}, " if self.done else ""
        note = f", {self.note}" if self.note else ""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, visible=False)
        self.console.print(f"{self.name}: done, {counted}{seconds:.1f} s{note}", highlight=False, soft_wrap=True)

    def _per_second(self) -> float:
        began, first = self.first or (self.started, 0)
        return (self.done - first) / max(time.monotonic() - began, 1e-9)

    def _rate(self) -> str:
        rate = self._per_second()
        return f"{rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s" if rate > 0 else ""

    def _line(self) -> str:
        of, rate = f"/{self.total:,}" if self.total else "", self._per_second()
        eta = f"ETA {(self.total - self.done) / rate:,.0f} s" if self.total and rate > 0 else ""
        told = [f"{self.done:,}{of} {self.unit}", self._rate(), eta, self.note]
        return f"{self.name}: {', '.join(filter(None, told))}"


class Display:
    """The console of one command."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH

    def line(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        """A line on what went wrong and is gone on without."""
        self.line(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table; cells are shown whole, folded where the terminal is narrow."""
        table = Table(title=title, title_justify="left", header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table, highlight=False, markup=False)

    @contextmanager
    def stage(self, name: str, *, unit: str = "pairs", total: int | None = None) -> Iterator[StageProgress]:
        """The progress of one stage, shown while the block runs."""
        if not self.console.is_terminal:
            self.line(f"{name} ...")
            progress = StageProgress(name, unit, total, None, self.console)
            yield progress
            progress.finish()
            return
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
