"""Build catalog columns from the columns of a user's table.

Names vary in case (`url`, `URL`), and so do types (LAION's `SAMPLE_ID` is a float)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import ConfigError
from orchestrator.source.schema import CATALOG_SCHEMA, Part, Problems, Shard, Status

KEY_NAMES = ("key", "uid", "sample_id")
OPTIONAL = {"width": ("width",), "height": ("height",), "uid": ("uid", "sha256"), "url": ("url",)}


def require(shard: Shard, names: Iterable[str], wanted: str, setting: str) -> None:
    """Check that a shard has a column. Errors: `ConfigError` if it does not."""
    names = list(names)
    if wanted not in names:
        raise ConfigError(f"{setting}: {shard.name} has no column {wanted!r}; its columns: {', '.join(names)}")


def find(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return the first of the wanted names that exists, ignoring case."""
    by_lower = {name.lower(): name for name in reversed(list(names))}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def label_columns(names: Sequence[str], caption: str, key: str | None) -> dict[str, str]:
    """Map catalog columns to the table's columns. Without a key column there is no `key`: rows get numbers."""
    found = {name: find(names, wanted) for name, wanted in OPTIONAL.items()}
    found |= {"key": key or find(names, KEY_NAMES), "caption": caption}
    return {name: column for name, column in found.items() if column is not None}


def catalog_columns(table: pa.Table, sources: dict[str, str], part: Part, problems: Problems) -> dict[str, pa.Array]:
    """Return the catalog columns found in a table; a missing key becomes the row's number in the shard.

    Errors: `ConfigError` if a column holds lists or records."""
    columns = {}
    for name in ("key", "caption", "width", "height", "uid", "url"):
        kind = CATALOG_SCHEMA.field(name).type
        if name not in sources:
            columns[name] = pa.nulls(table.num_rows, kind)
        elif pa.types.is_integer(kind):
            columns[name] = _lengths(table[sources[name]])
        else:
            text = text_values(table[sources[name]], f"{part.shard.name}: column {sources[name]}", problems)
            columns[name] = text.cast(kind)
    numbers = pa.array([str(part.first_row + i) for i in range(table.num_rows)], pa.string())
    columns["key"] = pc.coalesce(columns["key"], numbers)
    return columns


def text_values(column: pa.ChunkedArray, name: str, problems: Problems) -> pa.Array:
    """Convert a column of text or numbers to text (large_string [n]); nulls stay null and NaN becomes null.

    Numbers get no decimal point if all of them are whole. `name` is the column's name in messages.
    Errors: `ConfigError` if the column holds lists or records."""
    if _is_bytes(column.type):
        return _decoded(column.cast(pa.large_binary()).combine_chunks(), name, problems)
    series = pl.Series(pl.from_arrow(column))
    if series.dtype.is_nested():
        raise ConfigError(f"{name} is {column.type}; expected text or numbers")
    if series.dtype.is_float():
        # pandas writes missing numbers as NaN, which also turns a column of whole numbers into floats
        series = series.fill_nan(None)
        if (series.drop_nulls() % 1 == 0).all():
            series = series.cast(pl.Int64)
    return series.cast(pl.String).to_arrow().cast(pa.large_string())


def count_duplicates(shard_name: str, keys: pa.Array, problems: Problems) -> None:
    """Count every row with a key that an earlier row of the part already has."""
    series = pl.Series(keys)
    for key in series.filter(~series.is_first_distinct()):
        problems.add("duplicate_key", f"{shard_name}/{key}: more than one row has this key")


def report_statuses(shard_name: str, keys: pa.Array, status: np.ndarray, problems: Problems) -> None:
    """Count every row that is not `OK` as a problem named after its status."""
    for row in np.flatnonzero(status != Status.OK):
        kind = Status(int(status[row])).name.lower()
        problems.add(kind, f"{shard_name}/{keys[int(row)]}: {kind.replace('_', ' ')}")


def _lengths(column: pa.ChunkedArray) -> pa.Array:
    number = pl.lit(pl.Series(pl.from_arrow(column))).cast(pl.Float64, strict=False)
    return pl.select(pl.when(number >= 1).then(number)).to_series().cast(pl.Int32, strict=False).to_arrow()


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    return any(test(kind) for test in tests)


def _decoded(values: pa.Array, name: str, problems: Problems) -> pa.Array:
    # Arrow does not validate text when it reads Parquet; this cast does
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = [None if value is None else value.decode(errors="replace") for value in values.to_pylist()]
        for text, value in zip(texts, values.to_pylist(), strict=True):
            if text is not None and text.encode() != value:
                problems.add("bad_utf8", f"{name}: {text[:40]!r} is not UTF-8")
        return pa.array(texts, pa.large_string())
