"""Settings that name a field of a record by a dotted path, in Parquet and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.config import ConfigError, ParquetSource, TableSource
from orchestrator.data.external_list import ExternalList
from orchestrator.source import PartCatalog, open_source
from orchestrator.source.record_fields import steps, type_of, values_of
from tests.support.shard_files import picture

RECORDS: list[dict[str, Any] | None] = [
    {"caption": "a dog", "texts": ["", "one", "two"], "ids": {"main.key": "k0", "number": 7}},
    {"caption": " ", "texts": [], "ids": {"main.key": "k1", "number": 8}},
    None,
]
TABLE = pa.table({"meta": RECORDS, "text": ["x", "y", "z"], "id": [5, 6, 7]})
ALL = {"caption_column": "meta.caption", "key_column": "meta.ids.main.key"}


def catalog_of(uri: Path, kind: str, **settings: Any) -> PartCatalog:
    """Write the table as Parquet, as Parquet with images, or as JSON lines, and read its only part."""
    if kind == "jsonl":
        uri.write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()))
    else:
        images = pa.array([picture(number) for number in range(3)], pa.binary())
        pq.write_table(TABLE.append_column("jpg", images) if kind == "images" else TABLE, uri)
    source = open_source((ParquetSource if kind == "images" else TableSource)(uri=str(uri), **settings))
    (part,) = source.parts()
    assert source.reads(part).catalog > 0
    return source.catalog(part)


@pytest.mark.parametrize("kind", ["parquet", "images", "jsonl"])
def test_captions_and_keys_in_records(kind: str, tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path / f"t.{'jsonl' if kind == 'jsonl' else 'parquet'}", kind, **ALL)
    assert catalog.table["key"].to_pylist() == ["k0", "k1", "2"]
    assert catalog.table["caption"].to_pylist() == ["a dog", " ", None]
    assert catalog.captions.taken == {"column meta.caption": 1}, "blank captions and nulls do not count"


@pytest.mark.parametrize("kind", ["parquet", "images"])
def test_lists_and_numbers_in_records(kind: str, tmp_path: Path) -> None:
    settings = {"caption_column": "meta.texts", "key_column": "meta.ids.number"}
    catalog = catalog_of(tmp_path / "t.parquet", kind, **settings)
    assert catalog.table["key"].to_pylist() == ["7", "8", "2"]
    assert catalog.table["caption"].to_pylist() == ["one", None, None]
    assert catalog.problems["several_captions"] == 1


def test_the_report_of_a_plain_column_says_its_name(tmp_path: Path) -> None:
    assert catalog_of(tmp_path / "t.parquet", "parquet", key_column="id").captions.taken == {"column text": 3}


def test_a_column_with_dots_in_its_name_comes_first(tmp_path: Path) -> None:
    table = TABLE.append_column("meta.caption", pa.array(["1", "2", "3"]))
    assert (steps(table.schema, "meta.caption"), type_of(table.schema, "meta.caption")) == (
        ("meta.caption",),
        pa.string(),
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = open_source(TableSource(uri=str(tmp_path / "t.parquet"), caption_column="meta.caption"))
    assert source.catalog(source.parts()[0]).table["caption"].to_pylist() == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"caption_column": "meta.txt"},
            r"source\.caption_column: t\.parquet has no field 'meta\.txt'; the fields of .*: meta\.caption, meta",
        ),
        ({"caption_column": "other.txt"}, r"t\.parquet has no column 'other\.txt'; its columns: meta, text, id"),
        ({"caption_column": "text.txt"}, r"t\.parquet has no column 'text\.txt'"),
        ({"caption_column": "meta.ids"}, r"source\.caption_column: .* column meta\.ids is struct.*; expected text"),
        ({"key_column": "meta.ids"}, r"source\.key_column: .* column meta\.ids is struct.*; expected text or numbers"),
        ({"key_column": "meta.id"}, r"source\.key_column: t\.parquet has no field 'meta\.id'"),
    ],
)
def test_a_wrong_path_is_one_line(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        catalog_of(tmp_path / "t.parquet", "parquet", **settings)


def test_an_external_list_may_match_by_a_field(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "list.parquet")
    listed = ExternalList.find(
        str(tmp_path / "list.parquet"), match_by="key", match_column="meta.ids.main.key", setting="x"
    )
    (piece,) = listed.pieces()
    assert listed.values(piece).to_list() == ["k0", "k1", None]


def test_nulls_of_records_are_nulls_of_their_fields() -> None:
    assert values_of(TABLE, "meta.ids.number").to_pylist() == [7, 8, None]
