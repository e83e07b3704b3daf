"""How fast the one writer of an embedding is, by itself: however many GPUs embed, all vectors pass it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from orchestrator.config.embedding import Tower
from orchestrator.engine.artifact import Artifact

# some shard's worth; a part for each of its threads
MAX_ROWS, NUM_PARTS = 10_000, 16


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is written: vectors of these lengths, in batches, to parts of so many rows."""

    dims: Mapping[Tower, int]
    batch_size: int
    rows_per_part: int


def seconds_per_row(artifact: Artifact, written: Written) -> float:
    """Wall seconds that the writer takes for a pair; its parts are written where the artifact is to be."""
    # not in the placement group of a sweep's trial
    task: Any = ray.remote(scheduling_strategy="DEFAULT")(_seconds_per_row)
    seconds: float = ray.get(task.remote(artifact, written))
    return seconds


def _seconds_per_row(artifact: Artifact, written: Written) -> float:
    from orchestrator.embedding.writer import Writer

    rows, seconds = min(MAX_ROWS, max(1, written.rows_per_part)), 0.0
    # the first one opens the connections
    for num_parts in (1, NUM_PARTS):
        writer, started = Writer(artifact, (rows,) * num_parts, written.dims, range(num_parts)), time.perf_counter()
        for part in range(num_parts):
            for start in range(0, rows, written.batch_size):
                writer(_batch(part, np.arange(start, min(rows, start + written.batch_size)), rows, written.dims))
        seconds = time.perf_counter() - started
    return seconds / (rows * NUM_PARTS)


def _batch(part: int, places: np.ndarray, rows: int, dims: Mapping[Tower, int]) -> dict[str, Any]:
    num = len(places)
    return {
        "part": np.full(num, part),
        "row": places,
        "expected": np.full(num, rows),
        "key": np.full(num, "", object),
        "problem": np.full(num, "", object),
        **{tower: np.zeros((num, dim), np.float16) for tower, dim in dims.items()},
    }
