"""Read further metadata of the pairs of a part, such as `original_width`, in the order of the part's catalog.

A catalog has fixed columns. Other fields are read when a step needs them, so that a new field changes no catalog and
nothing that was made from one. In a table a field is a column. In a tar it is a column of the sidecar Parquet or, for
pairs that the sidecar does not list, a value in the pair's JSON member."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from orchestrator.source.columns import find, lengths
from orchestrator.source.plain_values import is_length, plain
from orchestrator.source.row_groups import open_parquet, read_part
from orchestrator.source.samples import MAX_TEXT, json_object
from orchestrator.source.schema import Part, Shard
from orchestrator.source.sidecar import Row, sidecar_fields, whole
from orchestrator.source.tar import DamagedTar, NotATar, members, open_tar, read_member


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
    rows = sidecar_fields(shard.sidecar_uri, names) if shard.sidecar_uri else {}
    others = set(keys) - rows.keys()
    if others:
        rows |= _json_rows(shard.uri, others)
    values = {name: [whole(rows.get(key, {}).get(name)) for key in keys] for name in names}
    return pa.table({name: pa.array(column, pa.int32()) for name, column in values.items()})


def _json_rows(uri: str, wanted: set[str]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    try:
        with open_tar(uri) as (file, _):
            for member in members(file):
                if member.extension == "json" and member.key in wanted and member.size <= MAX_TEXT:
                    wanted.discard(member.key)
                    rows[member.key] = json_object(read_member(file, member)) or {}
    except (DamagedTar, NotATar):
        # the catalog has counted it, and has the pairs before the cut
        pass
    return rows
