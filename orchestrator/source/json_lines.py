"""Read JSON lines, or one JSON array of objects: an object is a row, its fields are columns.

Polars reads the lines. What it refuses or reads otherwise than Python's `json` (NaN, values of several kinds in one
column, a bad line) is read again line by line, which also finds the line's number."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa

from orchestrator.config import ConfigError
from orchestrator.source.json_text import replace_lone_escapes
from orchestrator.source.schema import Shard, UnreadableText

POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
ARROW_ERRORS = (pa.ArrowException, OverflowError)
MAX_UINT64 = 2**64 - 1


def read_json(shard: Shard, data: bytes, text_names: tuple[str, ...]) -> pl.DataFrame:
    """Return all rows. A number that is not finite is null; an integer from 2^63 is an unsigned one, or text.

    `text_names` are columns of captions: a list among them is a list, not its text.
    Errors: `ConfigError` with the line, or the object, that cannot be read."""
    data = replace_lone_escapes(data)
    if data.lstrip()[:1] == b"[":
        return _frame(shard, list(_objects(shard, data)), text_names)
    frame = _by_polars(data)
    if frame is None or not _is_complete(frame, data) or _mixes_lists(frame, data, text_names):
        frame = _frame(shard, list(_lines(shard, data)), text_names)
    return frame.with_columns(_unsigned(frame[name]) for name, kind in frame.schema.items() if kind == pl.Int128)


def _by_polars(data: bytes) -> pl.DataFrame | None:
    try:
        frame = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except POLARS_ERRORS:
        return None
    # Arrow has no integers of 128 bits, and within lists and records they cannot be converted
    has_wide_values = any(kind.is_nested() and "Int128" in str(kind) for kind in frame.schema.values())
    return None if has_wide_values else frame


def _is_complete(frame: pl.DataFrame, data: bytes) -> bool:
    # fast for a file without empty lines
    ends = data.count(b"\n") + (not data.endswith(b"\n"))
    return frame.height == ends or frame.height == sum(1 for line in data.split(b"\n") if line.strip())


def _mixes_lists(frame: pl.DataFrame, data: bytes, names: tuple[str, ...]) -> bool:
    # of a column with text and lists, Polars makes text; a caption may begin with a bracket, too
    found = [name for name in frame.columns if name.lower() in names and frame.schema[name] == pl.String]
    found = [name for name in found if frame[name].str.contains(r"^[\[{]").any()]
    return any(re.search(re.escape(json.dumps(name)).encode() + rb"\s*:\s*[\[{]", data) for name in found)


def _lines(shard: Shard, data: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield _object(shard, f"line {number:,}", _parsed(shard, line, f"line {number:,}"))


def _objects(shard: Shard, data: bytes) -> Iterator[dict[str, Any]]:
    for number, value in enumerate(_parsed(shard, data, "its array"), start=1):
        yield _object(shard, f"element {number:,}", value)


def _parsed(shard: Shard, data: bytes, place: str) -> Any:
    try:
        return json.loads(data, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno:,}" if place == "its array" else place
        raise _error(shard, f"{where}, column {error.colno:,}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise _error(shard, f"{place}: {error}") from error


def _object(shard: Shard, place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _error(shard, f"{place} is {json.dumps(value)[:40]}, expected an object")
    return value


def _error(shard: Shard, reason: str) -> ConfigError:
    return ConfigError(f"source.uri: {shard.uri} cannot be read as JSON lines: {reason}")


def _frame(shard: Shard, rows: list[dict[str, Any]], text_names: tuple[str, ...]) -> pl.DataFrame:
    if not rows:
        raise UnreadableText(shard, "is empty")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    for name in names:
        if name.lower() in text_names and pa.types.is_large_string(columns[name].type):
            nested = next((row[name] for row in rows if isinstance(row.get(name), list | dict)), None)
            if nested is not None:
                got = json.dumps(nested)[:40]
                raise _error(shard, f"field {name!r} is {got} in one row, expected a text or a list of texts")
    frame = pl.from_arrow(pa.table(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except ARROW_ERRORS:
        kinds = {type(value) for value in values if value is not None}
    if kinds == {str, list}:
        return _column([[value] if isinstance(value, str) else value for value in values])
    if kinds == {int} and all(value is None or 0 <= value <= MAX_UINT64 for value in values):
        return pa.array(values, pa.uint64())
    # large_string says that values were converted: Arrow itself makes `string` of text
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(texts, pa.large_string())


def _unsigned(column: pl.Series) -> pl.Series:
    # Arrow has no integers of 128 bits
    is_small = column.is_between(0, MAX_UINT64).all()
    return column.cast(pl.UInt64 if is_small else pl.String)
