"""The batch log: the key of every pair of every global batch, as Parquet files next to the curve.

A file holds one rank's share of the steps between two checkpoints. It is written with the second checkpoint, so steps
that a restart repeats are in no file, and the files of a phase together hold every step once."""

from __future__ import annotations

import re
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.storage import files
from orchestrator.training.decoding import Rows

# first step, step after the last, rank, number of ranks
FILE_NAME = re.compile(r"steps_(\d{12})-(\d{12})\.rank_(\d+)-of-(\d+)\.parquet")


class _Share(NamedTuple):
    step: int
    keys: list[str]
    valid: list[bool]


class BatchLog:
    """One rank's part of the batch log; steps are counted from 0."""

    def __init__(self, uri: str, *, rank: int, num_ranks: int, first_step: int):
        self.uri, self.rank, self.num_ranks, self.first_step = uri, rank, num_ranks, first_step
        self.shares: list[_Share] = []

    def drop_lost_steps(self) -> None:
        """Remove the files of steps that are trained again; one rank calls it before any rank writes."""
        for name in files.names(self.uri):
            found = FILE_NAME.fullmatch(name)
            if found and int(found[1]) >= self.first_step:
                files.remove(files.join(self.uri, name))

    def add(self, step: int, rows: Rows) -> None:
        """Add this rank's share of a global batch."""
        self.shares.append(_Share(step, rows["key"].tolist(), rows["valid"].tolist()))

    def flush(self, done: int) -> None:
        """Write the steps since the last flush, up to `done` steps of the phase."""
        table = pa.table(
            {
                "step": pa.array([share.step for share in self.shares for _ in share.keys], pa.int64()),
                "key": pa.array([key for share in self.shares for key in share.keys], pa.string()),
                "valid": pa.array([valid for share in self.shares for valid in share.valid], pa.bool_()),
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        name = f"steps_{self.first_step:012d}-{done:012d}.rank_{self.rank}-of-{self.num_ranks}.parquet"
        files.write(files.join(self.uri, name), sink.getvalue().to_pybytes())
        self.shares, self.first_step = [], done
