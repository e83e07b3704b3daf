"""The driver shows what its workers signal: each logged step once, with the rate of that step."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.engine import console
from orchestrator.engine.console import Display
from orchestrator.training import driver
from orchestrator.training.phase_signals import LogLine, PhaseState, forwarded_log

NAME = "orchestrator.training.worker"


@dataclass
class FakeSignals:
    """The actor without Ray: a remote call returns its result."""

    _state: PhaseState = field(default_factory=PhaseState)
    lines: list[LogLine] = field(default_factory=list)

    @property
    def state(self) -> Any:
        return SimpleNamespace(remote=lambda: self._state)

    @property
    def take_log(self) -> Any:
        return SimpleNamespace(remote=self._take)

    @property
    def log(self) -> Any:
        return SimpleNamespace(remote=self.lines.append)

    def _take(self) -> list[LogLine]:
        taken, self.lines = self.lines, []
        return taken


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get", lambda results: results)


def record(step: int, rate: float) -> dict[str, float]:
    return {"step": step, "samples_seen": 16 * step, "loss": 4.0 / step, "samples_per_second": rate}


def test_each_logged_step_is_shown_once_with_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now))
    output, signals = io.StringIO(), FakeSignals()
    with Display(Console(file=output)).stage("pretrain", unit="samples", total=1600) as progress:
        follower = driver._Follower(signals, progress, Display(Console(file=output)))
        follower.show()
        now += 15
        for step, rate in [(10, 40.0), (20, 80.0), (30, 100.0)]:
            signals._state.latest = record(step, rate)
            # a step is logged every 30 seconds, and the driver asks much more often
            for _ in range(60):
                now += 0.5
                follower.show()
    shown = [line for line in output.getvalue().splitlines() if "step" in line]
    assert shown[:3] == [
        "pretrain: 160/1,600 samples, 40 samples/s, ETA 36 s, loss 0.400, step 10",
        "pretrain: 320/1,600 samples, 80 samples/s, ETA 16 s, loss 0.200, step 20",
        "pretrain: 480/1,600 samples, 100 samples/s, ETA 11 s, loss 0.133, step 30",
    ]
    assert len(shown) == 4
    assert shown[3].startswith("pretrain: done, ")


def test_warnings_and_evaluations_are_shown_once() -> None:
    output, signals, measured = io.StringIO(), FakeSignals(), []
    progress = SimpleNamespace(update=lambda *args, **kwargs: None, measured=measured.append)
    follower = driver._Follower(signals, progress, Display(Console(file=output)))  # type: ignore[arg-type]
    for name in ("first", "second"):
        signals._state.warnings.append(name)
        signals._state.evaluations.append({"step": 1, "zero_shot/top1": 0.5})
        follower.show()
        follower.show()
    assert output.getvalue().split() == ["first", "second"]
    assert len(measured) == 2


@pytest.mark.parametrize(("rank", "expected"), [(0, ["hello", "careful"]), (1, ["careful"])])
def test_the_log_of_a_worker_reaches_the_drivers_log(
    rank: int, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    signals, log = FakeSignals(), logging.getLogger(NAME)
    with forwarded_log(signals, rank):
        log.debug("too much detail")
        log.info("hello")
        log.warning("careful")
    log.warning("after the block")
    assert [(line.logger, line.text) for line in signals.lines] == [
        (NAME, f"worker {rank}: {text}") for text in expected
    ]
    caplog.clear()
    caplog.set_level(logging.INFO, logger="orchestrator")
    display = Display(Console(file=io.StringIO()))
    driver._Follower(signals, SimpleNamespace(), display).show()  # type: ignore[arg-type]
    assert [(one.name, one.getMessage()) for one in caplog.records] == [
        (NAME, f"worker {rank}: {text}") for text in expected
    ]


def test_the_traceback_of_a_failed_worker_is_in_the_log() -> None:
    signals = FakeSignals()
    with forwarded_log(signals, 1):
        try:
            raise RuntimeError("out of luck")
        except RuntimeError:
            logging.getLogger(NAME).exception("pretrain: worker failed")
    (line,) = signals.lines
    assert line.level == logging.ERROR
    assert line.text.startswith("worker 1: pretrain: worker failed\nTraceback")
    assert line.text.endswith("RuntimeError: out of luck")
