"""Columns by name, or fields of records by a dotted path such as `meta.caption`. A column's own name comes first."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def steps(kinds: pa.Schema | pa.StructType, path: str) -> tuple[str, ...] | None:
    """Return the names on the way to a column or a field of records; None if there is no such way."""
    names = [field.name for field in kinds]
    if path in names:
        return (path,)
    for place in (place for place, character in enumerate(path) if character == "."):
        head, rest = path[:place], path[place + 1 :]
        kind = kinds.field(names.index(head)).type if names.count(head) == 1 else None
        below = steps(kind, rest) if kind is not None and pa.types.is_struct(kind) else None
        if below is not None:
            return (head, *below)
    return None


def is_field(kinds: pa.Schema | pa.StructType, path: str) -> bool:
    """Return whether a path leads to a field of a record, and not to a column."""
    return len(steps(kinds, path) or ()) > 1


def type_of(schema: pa.Schema, path: str) -> pa.DataType:
    """Return the type of a column or field that exists."""
    found = steps(schema, path)
    assert found is not None, path
    kind: pa.DataType = schema.field(schema.names.index(found[0])).type
    for name in found[1:]:
        kind = kind.field(kind.get_field_index(name)).type
    return kind


def values_of(table: pa.Table, path: str) -> pa.ChunkedArray:
    """Return the values of a column or field that exists; null where a record is null."""
    found = steps(table.schema, path)
    assert found is not None, path
    column = table[found[0]]
    for name in found[1:]:
        column = pc.struct_field(column, name)
    return column
