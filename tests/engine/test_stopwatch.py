"""Durations as text, and the time of an interrupted stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.engine import stopwatch
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.stopwatch import Stopwatch, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "<1 s"), (59, "59.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (864_000, "10.0 d")]
)
def test_a_duration_has_the_largest_unit_that_gives_one(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_interrupted_stage_continues_its_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, now = Artifact.of(str(tmp_path), "numbers", version=1), [0.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])
    first = Stopwatch(artifact)
    now[0] = 30.0
    first.save()
    now[0] = 100.0
    second = Stopwatch(artifact)
    now[0] = 105.0
    assert second.seconds == pytest.approx(35.0)
    second.remove()
    assert Stopwatch(artifact).seconds == 0.0
