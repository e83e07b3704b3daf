"""Read further metadata of the pairs of a part, such as `original_width`, in the order of the part's catalog.

A catalog has fixed columns. Other fields are read when a step needs them, so that a new field changes no catalog and
nothing that was made from one. In a table a field is a column. In a tar it is a column of the sidecar Parquet or, for
pairs that the sidecar does not list, a value in the pair's JSON member."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.source.columns import find, lengths
from orchestrator.source.plain_values import is_length, plain
from orchestrator.source.row_groups import open_parquet, read_part
from orchestrator.source.schema import Part, Shard
from orchestrator.source.tar import DamagedTar, NotATar, members, open_tar, read_member
from orchestrator.storage.files import read

# in bytes: a longer JSON member is not read
MAX_JSON = 4 << 20

Row = dict[str, Any]


def table_fields(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the columns with these names, ignoring case, as positive whole numbers (int32 [n]).

    Other values, columns of other types and missing columns become null."""
    found = {name: find(table.column_names, (name,)) for name in names}
    columns = {
        name: lengths(plain(table[column]))
        if column and is_length(table[column].type)
        else pa.nulls(table.num_rows, pa.int32())
        for name, column in found.items()
    }
    return pa.table(columns)


def parquet_fields(part: Part, names: Sequence[str]) -> pa.Table:
    """Return fields of a range of rows of a Parquet file. Errors: `DamagedParquet`; `OSError` if the read fails."""
    if part.num_rows is None:
        # its footer is damaged, and its catalog has no rows
        return pa.table({name: pa.nulls(0, pa.int32()) for name in names})
    with open_parquet(part.shard.uri) as file:
        found = [column for name in names if (column := find(file.schema_arrow.names, (name,)))]
        if not found:
            return pa.table({name: pa.nulls(part.num_rows, pa.int32()) for name in names})
        return table_fields(read_part(file, part, found), names)


def tar_fields(shard: Shard, keys: Sequence[str], names: Sequence[str]) -> pa.Table:
    """Return fields of the samples with these keys, in their order. Errors: `OSError` if a read fails."""
    rows = _sidecar_rows(shard.sidecar_uri, names) if shard.sidecar_uri else {}
    others = set(keys) - rows.keys()
    if others:
        rows |= _json_rows(shard.uri, others)
    values = {name: [_whole(rows.get(key, {}).get(name)) for key in keys] for name in names}
    return pa.table({name: pa.array(column, pa.int32()) for name, column in values.items()})


def _sidecar_rows(uri: str, names: Sequence[str]) -> dict[str, Row]:
    data = read(uri)
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        columns = [name for name in ("key", "status", *names) if name in file.schema_arrow.names]
        rows = file.read(columns=columns).to_pylist()
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError):
        # the catalog has counted the damage, and used the tar instead
        return {}
    return {str(row["key"]): row for row in rows if row.get("key") is not None and row.get("status") in OK_OR_NONE}


# a sidecar without statuses lists only what was downloaded
OK_OR_NONE = ("success", None)


def _json_rows(uri: str, wanted: set[str]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    try:
        with open_tar(uri) as (file, _):
            for member in members(file):
                if member.extension == "json" and member.key in wanted and member.size <= MAX_JSON:
                    wanted.discard(member.key)
                    rows[member.key] = _parsed(read_member(file, member))
    except (DamagedTar, NotATar):
        # the catalog has counted it, and has the pairs before the cut
        pass
    return rows


def _parsed(data: bytes) -> Row:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 1 <= value < 2**31 else None
