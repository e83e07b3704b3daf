"""Warnings of trials reach the user of the sweep and stay in the trials' folders."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.engine.console import Display
from orchestrator.sweep import board as sweep_board
from orchestrator.sweep.board import Board, TrialDisplay, shown
from orchestrator.sweep.warnings import FILE


@pytest.mark.parametrize("is_terminal", [False, True])
def test_each_kind_of_warning_is_shown_once_and_counted(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(sweep_board, "POLL_SECONDS", 0.1)
    output, board = StringIO(), Board.remote()  # type: ignore[attr-defined]
    names = ["one", "two"]
    with shown(board, names, "m", Display(Console(file=output, force_terminal=is_terminal, width=120))):
        for name in names:
            trial = TrialDisplay(
                name, board, out=str(tmp_path / name), total=1, metric="m", measured=lambda record: None
            )
            trial.line("a line of its progress")
            trial.warn(f"W&B does not answer at step {len(name) * 7}")
            trial.warn("W&B does not answer at step 9")
            if name == "two":
                trial.warn("Cars: skipped, not there")
    text = output.getvalue()
    assert text.count("one: W&B does not answer at step 21") == 1
    assert "two: W&B" not in text
    assert "two: Cars: skipped, not there" in text
    assert f"4 warnings like one's ({FILE} in the trials' folders): W&B does not answer at step 21" in text
    assert "warnings like two's" not in text
    assert "a line of its progress" not in text
    assert (tmp_path / "two" / FILE).read_text().splitlines() == [
        "W&B does not answer at step 21",
        "W&B does not answer at step 9",
        "Cars: skipped, not there",
    ]
