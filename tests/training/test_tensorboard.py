"""TensorBoard's events in a bucket are complete, and a resumed session hides the steps that are trained again."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.storage import files
from orchestrator.training.tracking import tensorboard
from orchestrator.training.tracking.tensorboard import TensorBoard


@pytest.mark.parametrize("copy_seconds", [0.0, 60.0])
def test_a_second_session_replaces_repeated_steps(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy_seconds: float
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(tensorboard, "COPY_SECONDS", copy_seconds)
    uri = f"{s3_bucket}/phase/tensorboard"
    for first, values in ((0, {1: 0.1, 2: 0.2, 3: 0.3}), (2, {3: 3.0, 4: 4.0})):
        board = TensorBoard(uri, first_step=first)
        for step, value in values.items():
            board.log(step, {"train/loss": value})
        board.close()
    assert len(files.names(uri)) == 2
    files.copy(uri, str(tmp_path / "copy"))
    found = EventAccumulator(str(tmp_path / "copy")).Reload().Scalars("train/loss")
    assert {event.step: round(event.value, 3) for event in found} == {1: 0.1, 2: 0.2, 3: 3.0, 4: 4.0}
