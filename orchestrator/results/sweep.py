"""Read a finished sweep.

from orchestrator import Sweep

sweep = Sweep("runs/demo_sweep")
sweep.trials.group_by("keep_fraction", "model").agg(pl.mean("zero_shot/top1"))"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.engine.artifact_files import checked
from orchestrator.errors import UserError
from orchestrator.results.run import Run
from orchestrator.storage import files
from orchestrator.sweep.report.schema import JSON_FILE, TABLE_FILE, SweepReport


@dataclass(frozen=True)
class Sweep:
    """The finished sweep in an `out=` folder.

    Errors, when an attribute is read: `UserError` if the folder has no finished sweep."""

    out: str | os.PathLike[str]

    @cached_property
    def report(self) -> SweepReport:
        """The contents of `sweep.json`, as attributes."""
        with self._checked(JSON_FILE):
            return SweepReport.model_validate_json(self._read(JSON_FILE))

    @cached_property
    def trials(self) -> pl.DataFrame:
        """A row for each trial and model.

        Columns: `trial`, `control`, `seed`, `state`, `reason`, `model`; one for each dimension; `pairs`,
        `kept_fraction`, `samples_seen`, seconds and hours of pruning and training; one for each metric."""
        with self._checked(TABLE_FILE):
            return pl.DataFrame(pq.read_table(pa.BufferReader(self._read(TABLE_FILE))))

    def run(self, trial: str) -> Run:
        """Return the run of a finished trial. Errors: `UserError` for any other name, with the valid ones."""
        finished = {one.name: one.out for one in self.report.trials if one.state == "finished"}
        if trial not in finished:
            raise UserError(f"{self.out} has no finished trial {trial!r}; it has: {', '.join(finished) or 'none'}")
        return Run(finished[trial])

    def _checked(self, name: str) -> AbstractContextManager[None]:
        remedy = "run the same sweep again with resume=true, which writes it again"
        return checked(files.join(os.fspath(self.out), name), remedy=remedy)

    def _read(self, name: str) -> bytes:
        out = os.fspath(self.out)
        if not files.exists(files.join(out, JSON_FILE)):
            raise UserError(f"no finished sweep in {out}: expected {JSON_FILE} there; give the out= folder of a sweep")
        return files.read(files.join(out, name))
