"""Values of an Arrow column without what encodes them: dictionaries, views, runs, and the types of extensions."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
OTHERS = (
    pa.types.is_boolean,
    pa.types.is_null,
    pa.types.is_fixed_size_binary,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_timestamp,
)
_UUID = r"^(.{8})(.{4})(.{4})(.{4})(.{12})$"


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values that a column of this type stands for."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds text, or bytes that may be text."""
    return any(test(plain_type(kind)) for test in (*TEXT, *BYTES))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a column holds bytes of any length."""
    return any(test(plain_type(kind)) for test in BYTES)


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column holds lists."""
    return any(test(plain_type(kind)) for test in LISTS)


def is_length(kind: pa.DataType) -> bool:
    """Return whether a column may hold lengths: numbers, or text of them."""
    return is_text(kind) or any(test(plain_type(kind)) for test in (*NUMBERS, pa.types.is_null))


def is_single(kind: pa.DataType) -> bool:
    """Return whether a value of a column can be written as one text: it is no list, record or union."""
    return is_text(kind) or any(test(plain_type(kind)) for test in (*NUMBERS, *OTHERS))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values of a column as `plain_type`; an identifier of type uuid as its text (string)."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        storage = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
        return _with_hyphens(hex_digits(storage)) if kind.extension_name == "arrow.uuid" else plain(storage)
    if pa.types.is_dictionary(kind):
        # an index may be null, and so may a value of the dictionary
        chunks = [chunk.dictionary_decode() for chunk in column.chunks]
        return plain(pa.chunked_array(chunks, kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return plain(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], kind.value_type))
    target = plain_type(kind)
    return column if target == kind else column.cast(target)


def without_views(table: pa.Table) -> pa.Table:
    """Return a table with text and bytes instead of views of them: Arrow cannot take rows of a view."""
    fields = [field.with_type(_without_views(field.type)) for field in table.schema]
    schema = pa.schema(fields, table.schema.metadata)
    return table if schema == table.schema else table.cast(schema)


def _without_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return plain_type(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind.fields])
    return kind


def hex_digits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the bytes of a column of any binary type as hexadecimal digits (large_string)."""
    series = pl.Series(pl.from_arrow(column.cast(pa.large_binary())))
    return pa.chunked_array([series.bin.encode("hex").to_arrow().cast(pa.large_string())])


def is_ascii(column: pa.ChunkedArray) -> bool:
    """Return whether all bytes of a column of bytes are printable ASCII."""
    return all(value.isascii() and value.decode().isprintable() for value in column.drop_null().to_pylist())


def _with_hyphens(digits: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(digits, _UUID, r"\1-\2-\3-\4-\5")
