"""Metadata that is not in the catalog, from every format, in the order of the catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestrator.config import ParquetSource, TableSource
from orchestrator.source import CaptionTable, ParquetImages, Source, WebDataset
from orchestrator.source.row_groups import DamagedParquet
from tests.support.shard_files import picture, write_sidecar, write_tar

NAMES = ("original_width", "original_height")
ROWS: list[dict[str, Any]] = [
    {"key": "b", "caption": "two", "ORIGINAL_WIDTH": 1024.0, "original_height": "150"},
    {"key": "a", "caption": "one", "ORIGINAL_WIDTH": None, "original_height": "0"},
    {"key": "c", "caption": None, "ORIGINAL_WIDTH": 30.0, "original_height": "none"},
]
EXPECTED = {"original_width": [1024, None, 30], "original_height": [150, None, None]}


def fields_of(source: Source) -> dict[str, list[int | None]]:
    (part,) = source.parts()
    keys = source.catalog(part).table["key"].to_pylist()
    return source.fields(part, keys, NAMES).to_pydict()


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_tables(tmp_path: Path, ending: str) -> None:
    table, path = pl.DataFrame(ROWS), tmp_path / f"0.{ending}"
    {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[ending](path)
    assert fields_of(CaptionTable.open(TableSource(uri=str(path)))) == EXPECTED


def test_ranges_of_a_parquet_file_and_a_file_without_the_columns(tmp_path: Path) -> None:
    images = [picture(seed) for seed in range(3)]
    pl.DataFrame(ROWS).with_columns(pl.Series("jpg", images)).write_parquet(tmp_path / "0.parquet", row_group_size=2)
    assert fields_of(ParquetImages.open(ParquetSource(uri=str(tmp_path)))) == EXPECTED
    pl.DataFrame(ROWS).select("key", "caption").write_parquet(tmp_path / "t.parquet")
    table = CaptionTable.open(TableSource(uri=str(tmp_path / "t.parquet"), part_rows=2))
    first, second = table.parts()
    assert table.fields(first, ["b", "a"], NAMES).to_pydict() == {name: [None, None] for name in NAMES}
    assert table.fields(second, ["c"], NAMES).num_rows == 1


def members(key: str, fields: Any) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", picture(1)), (f"{key}.json", json.dumps(fields).encode())]


def test_json_members_of_a_tar(tmp_path: Path) -> None:
    entries = [
        *members("b", {"caption": "two", "original_width": 1024, "original_height": 150}),
        *members("a", ["no object"]),
        *members("c", {"caption": "three", "original_width": -1, "original_height": "x"}),
    ]
    write_tar(tmp_path / "0.tar", entries)
    assert fields_of(WebDataset.open(str(tmp_path / "0.tar"))) == {
        "original_width": [1024, None, None],
        "original_height": [150, None, None],
    }


def test_the_sidecar_and_json_for_pairs_that_it_does_not_list(tmp_path: Path) -> None:
    entries = [entry for key in "abc" for entry in members(key, {"original_width": 7, "original_height": 8})]
    write_tar(tmp_path / "0.tar", entries)
    rows = [
        {"key": "c", "status": "success", "caption": "c", "original_width": 300, "original_height": 400},
        {"key": "a", "status": "success", "caption": "a", "original_width": 100, "original_height": None},
        {"key": "b", "status": "failed", "caption": "b", "original_width": 1, "original_height": 1},
    ]
    write_sidecar(tmp_path / "0.parquet", rows)
    assert fields_of(WebDataset.open(str(tmp_path / "0.tar"))) == {
        "original_width": [100, 7, 300],
        "original_height": [None, 8, 400],
    }


def test_a_truncated_tar_gives_the_pairs_before_the_cut(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [e for key in "ab" for e in members(key, {"original_width": 7})])
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"b.jpg") + 600])
    assert fields_of(WebDataset.open(str(path)))["original_width"] == [7]


def test_a_damaged_parquet_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1 no footer")
    source = ParquetImages.open(ParquetSource(uri=str(tmp_path)))
    (part,) = source.parts()
    assert source.fields(part, [], NAMES).num_rows == 0
    with pytest.raises(DamagedParquet):
        source.fields(part.__class__(index=0, shard=part.shard, first_row=0, num_rows=1), ["a"], NAMES)
