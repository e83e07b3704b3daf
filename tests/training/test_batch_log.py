"""The batch log has every step once, also after interruptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from orchestrator.training.batch_log import BatchLog


def share(step: int, rank: int) -> dict[str, np.ndarray]:
    return {"key": np.array([f"{step}-{rank}-{i}" for i in range(2)], object), "valid": np.array([True, False])}


def train(folder: Path, steps: range, *, num_ranks: int, flush_at: set[int]) -> None:
    logs = [BatchLog(str(folder), rank=r, num_ranks=num_ranks, first_step=steps.start) for r in range(num_ranks)]
    logs[0].drop_lost_steps()
    for step in steps:
        for rank, log in enumerate(logs):
            log.add(step, share(step, rank))
            if step + 1 in flush_at:
                log.flush(step + 1)


def recorded(folder: Path) -> list[tuple[int, str]]:
    table = pq.read_table(folder)
    assert table.column_names == ["step", "key", "valid"]
    return sorted(zip(table["step"].to_pylist(), table["key"].to_pylist(), strict=True))


def test_an_interrupted_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    train(tmp_path / "whole", range(10), num_ranks=2, flush_at={4, 8, 10})
    # the restart repeats the steps after 4: the checkpoint at 8 was not complete, so its flush is dropped too
    train(tmp_path / "cut", range(9), num_ranks=2, flush_at={4, 8})
    train(tmp_path / "cut", range(4, 10), num_ranks=2, flush_at={8, 10})
    assert recorded(tmp_path / "cut") == recorded(tmp_path / "whole")
    assert len(recorded(tmp_path / "cut")) == 10 * 2 * 2


def test_a_log_continues_with_another_number_of_ranks(tmp_path: Path) -> None:
    train(tmp_path, range(9), num_ranks=2, flush_at={4, 8})
    train(tmp_path, range(4, 6), num_ranks=1, flush_at={6})
    steps = [step for step, _ in recorded(tmp_path)]
    assert steps == sorted([0, 1, 2, 3] * 4 + [4, 5] * 2)
