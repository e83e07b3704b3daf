"""The console on a pipe: no line is printed twice, and the rate is that of recent progress."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.engine import console
from orchestrator.engine.console import Display, RecentRate


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(console.time, "monotonic", found)
    return found


def test_updates_without_progress_print_nothing_new(clock: Clock) -> None:
    out = io.StringIO()
    with Display(Console(file=out)).stage("pretrain", unit="samples", total=1000) as progress:
        for second in range(100):
            clock.now = float(second)
            # a step is logged every 30 s; the display is updated every second
            progress.update(second // 30 * 100, note=f"step {second // 30}")
    lines = [line for line in out.getvalue().splitlines() if "samples/s" in line or "ETA" in line or "/1,000" in line]
    assert len(lines) == len(set(lines)), lines
    assert [line.split(",")[0] for line in lines if "step" in line][-1].endswith("300/1")


def test_the_rate_is_of_the_last_minute() -> None:
    rate = RecentRate()
    for second in range(0, 601, 10):
        # 1 unit/s for five minutes, then 10 units/s
        rate.add(float(second), second if second <= 300 else 300 + 10 * (second - 300))
    assert rate.per_second == pytest.approx(10.0)


def test_a_resumed_stage_counts_its_own_progress_only() -> None:
    rate = RecentRate()
    rate.add(0.0, 5000)
    assert rate.per_second == 0
    rate.add(10.0, 5100)
    assert rate.per_second == pytest.approx(10.0)


def test_a_stage_with_rare_updates_keeps_its_rate() -> None:
    rate = RecentRate()
    for hour in range(4):
        rate.add(hour * 3600.0, hour * 3600)
    assert rate.per_second == pytest.approx(1.0)


def test_the_rate_of_the_caller_is_shown(clock: Clock) -> None:
    out = io.StringIO()
    with Display(Console(file=out)).stage("pretrain", unit="samples", total=1000) as progress:
        clock.now = 20.0
        progress.update(100, rate=50.0)
    assert "100/1,000 samples, 50 samples/s, ETA 18 s" in out.getvalue()
