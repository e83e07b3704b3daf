"""The curve's file: its bytes equal those of its records after any number of writes, and writing costs little."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.storage import files
from orchestrator.training.tracking import curve as curve_module
from orchestrator.training.tracking.curve import FLUSH_SECONDS, Curve


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 4.0 / step, "note": "é" if step % 2 else None, "lr": 1e-300 * step}


def lines(*steps: int) -> bytes:
    return "".join(json.dumps(record(step)) + "\n" for step in steps).encode()


class Slow:
    """A clock that moves only when it is told to, and by `seconds` for each write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float):
        self.now, self.num_writes = 0.0, 0
        write = files.write

        def slowly(uri: str, data: bytes) -> None:
            write(uri, data)
            self.now, self.num_writes = self.now + seconds, self.num_writes + 1

        monkeypatch.setattr(curve_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(files, "write", slowly)


def test_a_resumed_phase_has_the_lines_of_an_uninterrupted_one(tmp_path: Path) -> None:
    for first_step, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5)), (5, ())):
        curve = Curve(str(tmp_path), first_step=first_step)
        for step in steps:
            curve.log(record(step))
            if step % 2:
                curve.flush()
        curve.flush()
        assert (tmp_path / "metrics.jsonl").read_bytes() == lines(*range(1, max((first_step, *steps)) + 1))
    assert curve.records == [record(step) for step in range(1, 6)]


def test_each_record_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []

    def dumps(value: dict[str, Any]) -> str:
        encoded.append(value["step"])
        return json.dumps(value)

    monkeypatch.setattr(curve_module, "json", SimpleNamespace(dumps=dumps, loads=json.loads))
    curve = Curve(str(tmp_path), first_step=0)
    for step in range(1, 6):
        curve.log(record(step))
        curve.flush()
    assert encoded == [1, 2, 3, 4, 5]
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines(1, 2, 3, 4, 5)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, FLUSH_SECONDS), (0.05, FLUSH_SECONDS), (0.5, 50.0)])
def test_a_slow_file_is_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: float
) -> None:
    clock = Slow(monkeypatch, seconds)
    curve = Curve(str(tmp_path), first_step=0)
    curve.flush()
    for step, (wait, writes) in enumerate([(expected - 1, 1), (2, 2), (expected - 1, 2), (2, 3)], start=1):
        clock.now += wait
        curve.log(record(step))
        assert clock.num_writes == writes
    curve.log(record(5))
    assert clock.num_writes == 3
    # a checkpoint and the end write at once
    curve.flush()
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines(1, 2, 3, 4, 5)
