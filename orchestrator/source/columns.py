"""Catalog columns from the columns of a user's table, whose names vary in case (`url`, `URL`) and types (LAION's
`SAMPLE_ID` is a float)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import ConfigError
from orchestrator.source.schema import CATALOG_SCHEMA, Problems, Shard, Status

KEY_NAMES = ("key", "uid", "sample_id")
OPTIONAL = {"width": ("width",), "height": ("height",), "uid": ("uid", "sha256"), "url": ("url",)}


def require(shard: Shard, names: Iterable[str], wanted: str, setting: str) -> None:
    """Errors: `ConfigError` if a column is not among a shard's."""
    names = list(names)
    if wanted not in names:
        raise ConfigError(f"{setting}: {shard.name} has no column {wanted!r}; its columns: {', '.join(names)}")


def find(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted names that is there, in any case."""
    by_lower = {name.lower(): name for name in reversed(list(names))}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def label_columns(names: Sequence[str], caption: str, key: str | None) -> dict[str, str]:
    """Which of a table's columns holds which catalog column; `key` is left out where rows are to be numbered."""
    found = {name: find(names, wanted) for name, wanted in OPTIONAL.items()}
    found |= {"key": key or find(names, KEY_NAMES), "caption": caption}
    return {name: column for name, column in found.items() if column is not None}


def catalog_columns(table: pa.Table, sources: dict[str, str], first_row: int) -> dict[str, pa.Array]:
    """The catalog columns that a table's own columns give; a missing key is the row's number in the shard."""
    columns = {
        name: _cast(table[sources[name]], CATALOG_SCHEMA.field(name).type)
        if name in sources else pa.nulls(table.num_rows, CATALOG_SCHEMA.field(name).type)
        for name in ("key", "caption", "width", "height", "uid", "url")
    }
    numbers = pa.array([str(first_row + i) for i in range(table.num_rows)], pa.string())
    columns["key"] = pc.coalesce(columns["key"], numbers)
    return columns


def count_duplicates(shard_name: str, keys: pa.Array, problems: Problems) -> None:
    """Counts every row whose key an earlier row of the part has."""
    series = pl.Series(keys)
    for key in series.filter(~series.is_first_distinct()):
        problems.add("duplicate_key", f"{shard_name}/{key}: more than one row has this key")


def report_statuses(shard_name: str, keys: pa.Array, status: np.ndarray, problems: Problems) -> None:
    """Counts every row that is not `OK`, by the name of its status."""
    for row in np.flatnonzero(status != Status.OK):
        kind = Status(int(status[row])).name.lower()
        problems.add(kind, f"{shard_name}/{keys[int(row)]}: {kind.replace('_', ' ')}")


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    series = pl.Series(pl.from_arrow(column))
    if pa.types.is_integer(kind):
        number = pl.lit(series).cast(pl.Float64, strict=False)
        series = pl.select(pl.when(number >= 1).then(number)).to_series().cast(pl.Int32, strict=False)
        return series.to_arrow()
    if series.dtype == pl.Binary:
        return column.combine_chunks().cast(kind)
    if series.dtype.is_float() and (series.drop_nulls() % 1 == 0).all():
        series = series.cast(pl.Int64)
    return series.cast(pl.String).to_arrow().cast(kind)
