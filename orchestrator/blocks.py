"""Passes over the parts of an artifact in tasks, whose answers are small: neither columns nor masks come together."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import ray

from orchestrator import cluster
from orchestrator.metering import current_meter

MAX_BLOCKS = 256
BLOCKS_PER_CPU = 4

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def over_blocks(items: Sequence[Item], answer: Callable[[list[Item]], Answer]) -> Iterator[Answer]:
    """The answer of each of at most 256 runs of items, in no order; there is at least one item.

    A few runs for each CPU: an answer may be large, such as the histograms of many groups, and all come back."""
    num_blocks = min(len(items), MAX_BLOCKS, BLOCKS_PER_CPU * cluster.num_cpus())
    blocks = np.array_split(np.arange(len(items)), num_blocks)
    rows = [{"items": [items[index] for index in block]} for block in blocks]
    meter = current_meter()

    def answers(batch: dict[str, Any]) -> dict[str, list[bytes]]:
        # pickled by hand: a column of arrays would come back with other types
        return {"answer": [pickle.dumps(meter.around(answer)(list(block))) for block in batch["items"]]}

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in dataset.map_batches(answers, batch_size=1).iter_rows():
        yield pickle.loads(row["answer"])
