"""One schema for an export of files with captions of different types. No Ray: schemas and rows only."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.export.test_export_pools import exported, selected, without_ray

__all__ = ["without_ray"]
TEXT = pa.array(["a", "b"])


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ([TEXT, TEXT.dictionary_encode()], "string"),
        ([TEXT.dictionary_encode(), TEXT], "string"),
        ([pa.nulls(2), TEXT.dictionary_encode(), TEXT.cast(pa.large_string())], "large_string"),
        ([TEXT.dictionary_encode(), pa.nulls(2)], "string"),
        ([TEXT.dictionary_encode(), TEXT.dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))], "string"),
        ([TEXT.cast(pa.string_view()), TEXT], "large_string"),
        ([TEXT, pa.array(["1", "2"], pa.json_())], "string"),
        ([TEXT.dictionary_encode(), TEXT.dictionary_encode()], "dictionary<values=string, indices=int32, ordered=0>"),
    ],
)
def test_captions_of_different_types_get_one_schema(tmp_path: Path, columns: list[pa.Array], kind: str) -> None:
    (tmp_path / "table").mkdir()
    for number, column in enumerate(columns):
        pq.write_table(pa.table({"caption": column, "n": [1, 2]}), tmp_path / "table" / f"{number}.parquet")
    record = selected({"format": "table", "uri": str(tmp_path / "table")}, tmp_path / "store")
    table = exported(record, tmp_path / "kept.parquet")
    assert str(table.schema.field("caption").type) == kind
    assert table["caption"].to_pylist() == [value for column in columns for value in column.to_pylist()]


def test_columns_of_one_name_are_exported_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    table = pa.table([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["caption", "n", "n"])
    pq.write_table(table, tmp_path / "table" / "0.parquet")
    record = selected({"format": "table", "uri": str(tmp_path / "table")}, tmp_path / "store")
    rows = exported(record, tmp_path / "kept.parquet").select(["caption", "n", "n_duplicated_0"]).to_pylist()
    assert rows == [{"caption": "a", "n": 1, "n_duplicated_0": 2}]
