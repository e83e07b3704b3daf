"""A finished run, opened to be read: its pairs with what was decided on each, its words, its curves, its report.

    from orchestrator import Run

    run = Run("runs/demo")
    run.pairs.filter("kept").select("caption", "score").sort("score").head(20).collect()

Tables of pairs and words are lazy and read part by part while they are collected, only the columns that are asked for,
so a filter or a sum over 400 million pairs needs no more memory than its result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from polars.io.plugins import register_io_source

from orchestrator.clustering.assign import NONE, read_assigned
from orchestrator.clustering.train import read_centroids
from orchestrator.config import parse
from orchestrator.config.section import MAX_IMAGE_PIXELS
from orchestrator.data.catalog import Catalog
from orchestrator.data.image_decode import whole_image
from orchestrator.data.keep_list import KeepList, Mask
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json_lines
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.errors import UserError
from orchestrator.report.clusters import cluster_table
from orchestrator.report.schema import Report
from orchestrator.report.trained import phases
from orchestrator.report.word_tables import word_tables
from orchestrator.selection import score_columns, selection_keep_lists
from orchestrator.selection.score_column import ScoreColumn
from orchestrator.selection.word_counts import read_bucket
from orchestrator.source import IMAGE_COLUMNS, open_source

CATALOG_COLUMNS = {
    "key": pl.String,
    "caption": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
    "uid": pl.String,
    "url": pl.String,
}


@dataclass(frozen=True)
class Column:
    """A column of a table in parts: its type, and how one part's values are read."""

    dtype: pl.DataType | type[pl.DataType]
    read: Callable[[int], Any]


@dataclass(frozen=True)
class Run:
    """The run in an `out=` folder. Errors: `UserError` if no run is finished, or if it lacks the requested data."""

    out: str | os.PathLike[str]

    @cached_property
    def record(self) -> RunRecord:
        """The artifacts that the run is made of, with its whole configuration (`record.config`)."""
        return RunRecord.read(os.fspath(self.out))

    @cached_property
    def report(self) -> Report:
        """The contents of `report.json`, as attributes."""
        return Report.read(os.fspath(self.out))

    @property
    def funnel(self) -> pl.DataFrame:
        """How many pairs are left after each step: `name`, `what`, `pairs`."""
        return pl.DataFrame([row.model_dump() for row in self.report.funnel])

    @property
    def stages(self) -> pl.DataFrame:
        """What the run spent its wall seconds on: `name`, `kind`, `reused`, `seconds`, `uri`."""
        rows = [stage.model_dump(include={"name", "kind", "reused", "seconds", "uri"}) for stage in self.record.stages]
        return pl.DataFrame(rows)

    @property
    def evaluation(self) -> pl.DataFrame:
        """Each phase's model on each evaluation set: `phase`, `set`, `metric`, `value`. A benchmark task is a set
        "tasks/KEY"; averages over tasks are metrics, by their names, of the set "tasks"."""
        measured: list[tuple[str, str, Mapping[str, Any] | None]] = [
            (phase, of_set, numbers)
            for phase, found in self.report.evaluation.items()
            for of_set, numbers in found.model_dump().items()
        ]
        for phase, table in self.report.tasks.items():
            measured += [(phase, f"tasks/{task.key}", task.metrics) for task in table.results]
            measured.append((phase, "tasks", {one.name: one.value for one in table.averages}))
        rows = [
            {"phase": phase, "set": of_set, "metric": metric, "value": value}
            for phase, of_set, numbers in measured
            for metric, value in (numbers or {}).items()
        ]
        return pl.DataFrame(
            rows, schema={"phase": pl.String, "set": pl.String, "metric": pl.String, "value": pl.Float64}
        )

    def curve(self, phase: str = "pretrain") -> pl.DataFrame:
        """Every logged step of a phase: `step`, `samples_seen`, `epoch`, `loss`, `lr`, `logit_scale` and more."""
        trained = phases(self.record)
        if phase not in trained:
            raise UserError(f"{self.out} has no phase {phase!r}; it has: {', '.join(trained) or 'none'}")
        # every row: what is measured now and then may first come late
        return pl.DataFrame(read_json_lines(trained[phase].path("metrics.jsonl")), infer_schema_length=None)

    def words(self, when: Literal["before", "after"]) -> pl.LazyFrame:
        """The words of the captions before or after pruning: `word`, `count`."""
        tables = word_tables(self.record)
        if tables is None:
            raise UserError(f"{self.out} has counted no words; open a run or a select")
        table = tables[when == "after"]
        schema = pl.Schema({"word": pl.String, "count": pl.Int64})
        return _in_parts(schema, lambda index, _: read_bucket(table, index).cast({"count": pl.Int64}), len(table.parts))

    @property
    def pairs(self) -> pl.LazyFrame:
        """Every pair of the pool, in its order: `part` and `row`; the catalog's `key`, `caption`, `width`, `height`,
        `uid`, `url`; `after_STEP`, whether the step kept it, and `kept`, whether all did; the scores, named as in an
        export (null where a step did not score it); of each clustering `cluster_STEP` and `distance_STEP`."""
        columns = self._columns()

        def read(index: int, wanted: list[str]) -> pl.DataFrame:
            found = {name: pl.Series(name, columns[name].read(index)).cast(columns[name].dtype) for name in wanted}
            return pl.DataFrame(found)

        schema = pl.Schema({name: column.dtype for name, column in columns.items()})
        return _in_parts(schema, read, len(self._catalog.rows_per_part))

    def clusters(self, step: str) -> pl.DataFrame:
        """The clusters that a step used, densest first, without empty ones: `cluster`, `size`, `d_intra`; for DBP also
        `d_inter`, `complexity` (their product) and `quota`, the number of pairs to keep."""
        table = cluster_table(self.record, step)
        if table is None:
            steps = [str(stage.step) for stage in self.record.with_role(Role.CLUSTER_STATS)]
            raise UserError(f"{self.out} has no clusters of {step!r}; it has those of: {', '.join(steps) or 'none'}")
        return table

    def centroids(self, step: str) -> NDArray[np.float32]:
        """The unit centroids that a step used, [k, d]; row i belongs to cluster i."""
        made = self.record.find(Role.TRAIN_CENTROIDS, step)
        if made is None:
            self.clusters(step)
        assert made is not None, "a step with clusters has centroids"
        return read_centroids(made)

    def images(self, pairs: pl.DataFrame) -> list[Image.Image | None]:
        """The images of some rows of `pairs` (with `part` and `row`), RGB and uncropped; None for one that cannot be
        decoded. All are held in memory, so ask for a few.

        Errors: `UserError` if the source has changed since the run."""
        config = parse(self.record.config).source
        source = open_source(config)
        self._catalog.check_source(source, config, made=os.fspath(self.out))
        parts = self._catalog.parts_of(source)
        found: dict[tuple[int, int], Image.Image | None] = {}
        for (index,), rows in pairs.select("part", "row").unique().group_by("part"):
            numbers = rows["row"].sort().to_list()
            wanted = self._catalog.table(index, IMAGE_COLUMNS).take(pa.array(numbers, pa.int64()))
            for number, data in zip(numbers, source.images(parts[index], wanted), strict=True):
                found[index, number] = whole_image(data, max_pixels=MAX_IMAGE_PIXELS)
        return [found[place] for place in pairs.select("part", "row").iter_rows()]

    @cached_property
    def _catalog(self) -> Catalog:
        made = self.record.of_kind("catalog")
        if not made:
            raise UserError(f"{self.out} has no pairs (it only evaluated a checkpoint); open a run or a select")
        return Catalog(made[0])

    def _columns(self) -> Mapping[str, Column]:
        catalog, steps = self._catalog, selection_keep_lists(self.record)
        sizes = catalog.rows_per_part
        columns = {
            "part": Column(pl.UInt32, lambda index: np.full(sizes[index], index)),
            "row": Column(pl.UInt32, lambda index: np.arange(sizes[index])),
        }
        for name, dtype in CATALOG_COLUMNS.items():
            columns[name] = Column(dtype, partial(_of_catalog, catalog, name))
        for name, artifact in steps:
            columns[f"after_{name}"] = Column(pl.Boolean, self._mask(artifact))
        if steps:
            columns["kept"] = Column(pl.Boolean, self._mask(steps[-1][1]))
        for score in score_columns(self.record):
            columns[score.name] = Column(pl.Float64, partial(_of_score, score, sizes))
        for stage in self.record.with_role(Role.ASSIGN_CLUSTERS):
            columns |= self._assigned(str(stage.step), stage.artifact)
        return columns

    def _mask(self, keep: Artifact) -> Callable[[int], Mask]:
        return lambda index: KeepList(keep).mask(index, self._catalog.rows_per_part[index])

    def _assigned(self, step: str, assigned: Artifact) -> dict[str, Column]:
        (reached,) = [keep for keep in self.record.of_kind("keep") if keep.fingerprint == assigned.made_from["keep"]]

        def clusters(index: int) -> NDArray[np.float64]:
            found = read_assigned(assigned, index).cluster
            return np.where(found == NONE, np.nan, found)

        return {
            f"cluster_{step}": Column(pl.Int32, self._spread(reached, clusters)),
            f"distance_{step}": Column(
                pl.Float32, self._spread(reached, lambda index: read_assigned(assigned, index).distance)
            ),
        }

    def _spread(self, reached: Artifact, read: Callable[[int], NDArray]) -> Callable[[int], pl.Series]:
        # a step's files hold the pairs that reached it; the others are null
        def spread(index: int) -> pl.Series:
            mask = self._mask(reached)(index)
            values = np.full(len(mask), np.nan)
            values[mask] = read(index)
            return pl.Series(values).fill_nan(None)

        return spread


def _of_score(score: ScoreColumn, sizes: Sequence[int], index: int) -> pl.Series:
    return pl.Series(score.of_part(index, sizes[index])).fill_nan(None)


def _of_catalog(catalog: Catalog, name: str, index: int) -> pa.Array:
    return catalog.table(index, (name,))[name].combine_chunks()


def _in_parts(schema: pl.Schema, read: Callable[[int, list[str]], pl.DataFrame], num_parts: int) -> pl.LazyFrame:
    """A table of which Polars reads one part at a time, and no more columns and parts than a query needs."""

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = with_columns if with_columns is not None else list(schema)
        for index in range(num_parts):
            if n_rows is not None and n_rows <= 0:
                return
            table = read(index, wanted).select(wanted)
            if n_rows is not None:
                table = table.head(n_rows)
                n_rows -= len(table)
            yield table if predicate is None else table.filter(predicate)

    return register_io_source(source, schema=schema)
