"""Find the columns of a user's table, and build catalog columns from them.

Names vary in case (`url`, `URL`), and so do types (LAION's `SAMPLE_ID` is a float)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import ConfigError
from orchestrator.source.plain_values import hex_digits, is_ascii, is_length, is_list, is_single, is_text, plain
from orchestrator.source.record_fields import is_field, type_of, values_of
from orchestrator.source.schema import CATALOG_SCHEMA, CaptionCounts, Part, Problems, Shard, Status, has_caption

KEY_NAMES = ("key", "uid", "sample_id")
OPTIONAL = {"width": ("width",), "height": ("height",), "uid": ("uid", "sha256"), "url": ("url",)}
# Polars renames the second of two columns of a text file with one name
SECOND = "_duplicated_0"


def require(shard: Shard, names: Iterable[str], wanted: str, setting: str) -> None:
    """Check that a shard has a column, once. Errors: `ConfigError` if it does not."""
    names = list(names)
    if wanted not in names:
        raise ConfigError(f"{setting}: {shard.name} has no column {wanted!r}; its columns: {', '.join(names)}")
    if names.count(wanted) > 1 or f"{wanted}{SECOND}" in names:
        raise ConfigError(f"{setting}: {shard.name} has two columns {wanted!r}; expected one; rename one of them")


def find(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return the first of the wanted names that exists, ignoring case."""
    by_lower = {name.lower(): name for name in reversed(list(names))}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def find_required(shard: Shard, schema: pa.Schema, configured: str | None, usual: Sequence[str], setting: str) -> str:
    """Return the configured column or field of records (`meta.caption`), or the first column with a usual name.

    Errors: `ConfigError` if there is none."""
    name = configured or find(schema.names, usual)
    if name is None:
        raise ConfigError(
            f"{setting} is not set, and {shard.name} has no column with a usual name ({', '.join(usual)}); "
            f"its columns: {', '.join(schema.names)}"
        )
    require_path(shard, schema, name, setting)
    return name


def require_path(shard: Shard, schema: pa.Schema, path: str, setting: str) -> None:
    """Check that a shard has a column, once, or a field of records. Errors: `ConfigError` if it does not."""
    if is_field(schema, path):
        return
    head = path.split(".")[0]
    kind = schema.field(head).type if path not in schema.names and schema.names.count(head) == 1 else None
    if kind is not None and pa.types.is_struct(kind):
        fields = ", ".join(f"{head}.{field.name}" for field in kind)
        raise ConfigError(f"{setting}: {shard.name} has no field {path!r}; the fields of column {head!r}: {fields}")
    require(shard, schema.names, path, setting)


def check_captions(shard: Shard, kind: pa.DataType, name: str) -> None:
    """Check that a column can hold captions. Errors: `ConfigError` if it cannot."""
    if not (is_single(kind) or (is_list(kind) and is_text(kind.value_type))):
        raise ConfigError(f"source.caption_column: {shard.name}: column {name} is {kind}; expected text")


def check_keys(shard: Shard, schema: pa.Schema, name: str | None) -> None:
    """Check a configured key column; None is none. Errors: `ConfigError` if it is missing or holds lists or records."""
    if name is None:
        return
    require_path(shard, schema, name, "source.key_column")
    kind = type_of(schema, name)
    if not is_single(kind):
        raise ConfigError(f"source.key_column: {shard.name}: column {name} is {kind}; expected text or numbers")


def label_columns(schema: pa.Schema, caption: str, key: str | None) -> dict[str, str]:
    """Map catalog columns to the table's columns. Without a key column there is no `key`: rows get numbers.

    A column that nobody asked for counts only if its type fits: text or numbers, and no other column has its name."""
    single = [field.name for field in schema if is_single(field.type) and schema.names.count(field.name) == 1]
    sizes = [name for name in single if is_length(schema.field(name).type)]
    found = {name: find(sizes if name in ("width", "height") else single, OPTIONAL[name]) for name in OPTIONAL}
    found |= {"key": key or find(single, KEY_NAMES), "caption": caption}
    return {name: column for name, column in found.items() if column is not None}


def report_ignored(shard: Shard, schema: pa.Schema, sources: dict[str, str], problems: Problems) -> None:
    """Count the columns that have the name of a catalog column but cannot be used as one."""
    usual = {"key": KEY_NAMES} | OPTIONAL
    found = [find(schema.names, names) for name, names in usual.items() if name not in sources]
    for column in dict.fromkeys(name for name in found if name is not None and name not in sources.values()):
        kinds = [str(field.type) for field in schema if field.name == column]
        problems.add("ignored_column", f"{shard.name}: column {column} is {' and '.join(kinds)}; not used")


def catalog_columns(table: pa.Table, sources: dict[str, str], part: Part, problems: Problems) -> dict[str, pa.Array]:
    """Return the catalog columns found in a table; a missing key becomes the row's number in the shard.

    Errors: `ConfigError` if a column holds lists or records; a caption may be the first text of a list."""
    columns = {}
    for name in ("key", "caption", "width", "height", "uid", "url"):
        kind = CATALOG_SCHEMA.field(name).type
        if name not in sources:
            columns[name] = pa.nulls(table.num_rows, kind)
            continue
        column = plain(values_of(table, sources[name]))
        title = f"{part.shard.name}: column {sources[name]}"
        if pa.types.is_integer(kind):
            columns[name] = lengths(column)
            continue
        if name == "caption" and is_list(column.type):
            column = _first_texts(column, title, problems)
        columns[name] = text_values(column, title, problems).cast(kind)
    if columns["key"].null_count:
        if "key" in sources:
            _report_missing_keys(columns["key"], part, problems)
        numbers = pa.array(part.first_row + np.arange(table.num_rows)).cast(pa.string())
        columns["key"] = pc.coalesce(columns["key"], numbers)
    return columns


def _report_missing_keys(keys: pa.Array, part: Part, problems: Problems) -> None:
    for row in np.flatnonzero(keys.is_null()):
        number = part.first_row + int(row)
        problems.add("missing_key", f"{part.shard.name}: row {number:,} has no key; its row number is its key")


def text_values(column: pa.ChunkedArray, name: str, problems: Problems) -> pa.Array:
    """Convert a column of text or numbers to text (large_string [n]); nulls stay null and NaN becomes null.

    Numbers get no decimal point if all of them are whole; bytes of a fixed size become hexadecimal digits, unless all
    of them are ASCII. `name` is the column's name in messages.
    Errors: `ConfigError` if the column holds lists or records."""
    column = plain(column)
    if not is_single(column.type):
        raise ConfigError(f"{name} is {column.type}; expected text or numbers")
    if pa.types.is_fixed_size_binary(column.type) and not is_ascii(column):
        column = hex_digits(column)
    if is_text(column.type) or pa.types.is_fixed_size_binary(column.type):
        return _decoded(column.cast(pa.large_binary()).combine_chunks(), name, problems)
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if pa.types.is_decimal256(column.type):
        return column.cast(pa.large_string()).combine_chunks()
    return _numbers_as_text(pl.Series(pl.from_arrow(column)))


def count_captions(columns: dict[str, pa.Array], sources: dict[str, str]) -> CaptionCounts:
    """Count the captions of a part that are not blank, by their column."""
    counts = CaptionCounts()
    number = pc.sum(has_caption(columns["caption"])).as_py()
    if number:
        counts.taken[f"column {sources['caption']}"] = number
    return counts


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


def _numbers_as_text(series: pl.Series) -> pa.Array:
    if series.dtype.is_float():
        # pandas writes missing numbers as NaN, which also turns a column of whole numbers into floats
        series = series.fill_nan(None)
        if (series.drop_nulls() % 1 == 0).all():
            whole = series.cast(pl.Int128, strict=False)
            series = whole if whole.null_count() == series.null_count() else series
    return series.cast(pl.String).to_arrow().cast(pa.large_string())


def _first_texts(column: pa.ChunkedArray, name: str, problems: Problems) -> pa.ChunkedArray:
    if not is_text(column.type.value_type):
        raise ConfigError(f"{name} is {column.type}; expected text")
    series = pl.Series(pl.from_arrow(column))
    lists = (series.arr.to_list() if isinstance(series.dtype, pl.Array) else series).cast(pl.List(pl.String))
    texts = lists.list.eval(pl.element().filter(pl.element().str.strip_chars() != ""))
    counts = texts.list.len().fill_null(0)
    for row in np.flatnonzero(counts.to_numpy() > 1):
        problems.add("several_captions", f"{name}: row {row:,} has {counts[int(row)]:,} captions; the first is used")
    return pa.chunked_array([texts.list.first().to_arrow()])


def lengths(column: pa.ChunkedArray) -> pa.Array:
    """Convert a plain column of numbers or text to positive whole numbers, int32 [n]; other values become null."""
    if is_text(column.type):
        column = pa.chunked_array([text_values(column, "", Problems())])
    elif not pa.types.is_integer(column.type):
        column = column.cast(pa.float64())
    number = pl.lit(pl.Series(pl.from_arrow(column))).cast(pl.Float64, strict=False)
    return pl.select(pl.when(number >= 1).then(number)).to_series().cast(pl.Int32, strict=False).to_arrow()


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
