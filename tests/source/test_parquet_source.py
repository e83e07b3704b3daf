"""Parquet shards with images: catalog, parts, damaged files, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.config import ConfigError, ParquetSource
from orchestrator.source import CATALOG_SCHEMA, ParquetImages, Status, open_source, parquet
from tests.support.shard_files import all_images, picture


def rows_of(num_rows: int) -> list[dict[str, Any]]:
    """Return rows as img2dataset writes them. Every fifth download failed; row 3 has no caption."""
    rows: list[dict[str, Any]] = []
    for i in range(num_rows):
        failed = i % 5 == 4
        rows.append({
            "jpg": None if failed else picture(i, width=40 + i), "key": f"{i:09d}",
            "caption": None if i == 3 else f"caption {i}", "status": "failed_to_download" if failed else "success",
            "width": None if failed else 40 + i, "height": None if failed else 30, "sha256": f"s{i}", "url": f"u{i}",
        })  # fmt: skip
    return rows


def write(path: Path, rows: list[dict[str, Any]], *, without: tuple[str, ...] = (), group: int = 4) -> Path:
    pq.write_table(pa.Table.from_pylist(rows).drop_columns(list(without)), path, row_group_size=group)
    return path


def open_at(path: Path, **settings: object) -> ParquetImages:
    source = open_source(ParquetSource(uri=str(path), **settings))  # type: ignore[arg-type]
    assert isinstance(source, ParquetImages)
    return source


@pytest.mark.parametrize("without", [(), ("width", "height"), ("status",), ("width", "status", "sha256", "url")])
def test_the_catalog_and_the_images_of_a_file(tmp_path: Path, without: tuple[str, ...]) -> None:
    rows = rows_of(11)
    source = open_at(write(tmp_path / "0.parquet", rows, without=without))
    (part,) = source.parts()
    assert (part.first_row, part.num_rows) == (0, 11)
    catalog = source.catalog(part)
    table = catalog.table
    assert table.schema == CATALOG_SCHEMA
    assert table["key"].to_pylist() == [row["key"] for row in rows]
    assert table["caption"].to_pylist() == [row["caption"] for row in rows]
    assert table["width"].to_pylist() == [row["width"] for row in rows]
    expected = [
        Status.MISSING_IMAGE if i % 5 == 4 else Status.MISSING_CAPTION if i == 3 else Status.OK for i in range(11)
    ]
    assert table["status"].to_pylist() == expected
    assert table["uid"].to_pylist() == ([None] * 11 if "sha256" in without else [row["sha256"] for row in rows])
    assert catalog.problems == {"missing_image": 2, "missing_caption": 1}
    images = [row["jpg"] for row in rows]
    assert all_images(source, part) == images
    assert all_images(source, part, [1, 4, 9]) == [images[1], None, None]
    assert all_images(source, part, [10]) == [images[10]]
    assert all_images(source, part, []) == []


def test_a_failed_row_has_no_image_even_with_bytes(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"jpg": picture(0), "key": "a", "caption": "x", "status": "failed_to_resize"}]
    source = open_at(write(tmp_path / "0.parquet", rows))
    assert source.catalog(source.parts()[0]).table["status"].to_pylist() == [Status.MISSING_IMAGE]
    assert all_images(source, source.parts()[0]) == [None]


def test_the_parts_of_a_big_file_cover_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(23)
    path = write(tmp_path / "0.parquet", rows, without=("width",))
    whole = open_at(path).catalog(open_at(path).parts()[0]).table
    monkeypatch.setattr(parquet, "PART_ROWS", 7)
    source = open_at(path)
    parts = source.parts()
    assert [(part.first_row, part.num_rows) for part in parts] == [(0, 4), (4, 4), (8, 4), (12, 4), (16, 7)]
    assert pa.concat_tables([source.catalog(part).table for part in parts]).equals(whole.combine_chunks())
    images = [image for part in parts for image in all_images(source, part)]
    assert images == [row["jpg"] for row in rows]


def test_an_undecodable_header_is_a_bad_image(tmp_path: Path) -> None:
    rows = [{"jpg": data, "key": "a", "caption": "x"} for data in (b"<html>", picture(1))]
    source = open_at(write(tmp_path / "0.parquet", rows))
    catalog = source.catalog(source.parts()[0])
    assert catalog.table["status"].to_pylist() == [Status.BAD_IMAGE, Status.OK]
    assert catalog.problems == {"bad_image": 1, "duplicate_key": 1}


def test_without_a_key_column_the_keys_are_row_numbers(tmp_path: Path) -> None:
    rows = rows_of(3)
    source = open_at(write(tmp_path / "0.parquet", rows, without=("key",)), key_column=None)
    assert source.catalog(source.parts()[0]).table["key"].to_pylist() == ["0", "1", "2"]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_a_damaged_file_is_a_broken_shard(tmp_path: Path, fraction: float) -> None:
    path = write(tmp_path / "0.parquet", rows_of(20))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    source = open_at(tmp_path)
    (part,) = source.parts()
    catalog = source.catalog(part)
    assert catalog.broken
    assert catalog.problems == {"unreadable_shard": 1}
    assert catalog.table.num_rows == 0


def test_a_damaged_footer_is_a_broken_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", rows_of(20))
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[-8:-4], "little")
    data[-8 - length : -8] = b"\xff" * length
    path.write_bytes(data)
    source = open_at(path)
    assert source.catalog(source.parts()[0]).broken


def test_a_damaged_caption_page_is_a_broken_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", rows_of(20), group=20)
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert column.path_in_schema == "caption"
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    data[start : start + column.total_compressed_size] = b"\xfe" * column.total_compressed_size
    path.write_bytes(data)
    source = open_at(path)
    catalog = source.catalog(source.parts()[0])
    assert catalog.broken
    assert catalog.table.num_rows == 0


def test_a_failed_read_is_raised(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", rows_of(3))
    source = open_at(path)
    (part,) = source.parts()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        source.catalog(part)
    with pytest.raises(FileNotFoundError):
        source.parts()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_column": "png"}, r"source.image_column: 0.parquet has no column 'png'; its columns: jpg, key, cap"),
        ({"caption_column": "TEXT"}, "source.caption_column: 0.parquet has no column 'TEXT'"),
        ({"key_column": "id"}, "source.key_column: 0.parquet has no column 'id'"),
        ({"image_column": "caption"}, "column 'caption' of 0.parquet is string; expected binary"),
    ],
)
def test_a_missing_column_is_an_error_that_lists_the_columns(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    source = open_at(write(tmp_path / "0.parquet", rows_of(3)), **settings)
    with pytest.raises(ConfigError, match=message):
        source.parts()


def test_reads_counts_the_catalog_columns_and_the_images_of_a_part(tmp_path: Path) -> None:
    rows = rows_of(12)
    plain = open_at(write(tmp_path / "0.parquet", rows))
    reads = plain.reads(plain.parts()[0])
    assert reads.images is not None
    assert 0 < reads.images < (tmp_path / "0.parquet").stat().st_size
    assert reads.rows_per_read == 4
    without_sizes = open_at(write(tmp_path / "1.parquet", rows, without=("width", "height")))
    opened = without_sizes.reads(without_sizes.parts()[0])
    assert opened.catalog > reads.images, "without size columns the catalog reads the images"
    noise = [{**row, "jpg_noise": {"a": picture(i), "b": picture(i, width=90)}} for i, row in enumerate(rows)]
    wide = open_at(write(tmp_path / "2.parquet", noise))
    assert wide.reads(wide.parts()[0]) == reads, "unused columns are not counted"


def test_without_statistics_or_with_nulls_the_catalog_reads_the_images(tmp_path: Path) -> None:
    full = [row for row in rows_of(12) if row["jpg"]]
    source = open_at(write(tmp_path / "0.parquet", full))
    full_reads = source.reads(source.parts()[0])
    assert full_reads.images is not None
    assert full_reads.catalog < full_reads.images / 2
    pq.write_table(pa.Table.from_pylist(full), tmp_path / "1.parquet", write_statistics=False)
    source = open_at(tmp_path / "1.parquet")
    opened = source.reads(source.parts()[0])
    assert opened.catalog > (opened.images or 0) > 0


def test_each_part_of_a_row_group_reads_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "PART_ROWS", 4)
    source = open_at(write(tmp_path / "0.parquet", rows_of(12), group=12))
    reads = [source.reads(part) for part in source.parts()]
    assert len(reads) == 3
    assert reads[0] == reads[1] == reads[2]
    (tmp_path / "0.parquet").write_bytes(b"no Parquet")
    damaged = open_at(tmp_path / "0.parquet")
    assert damaged.reads(damaged.parts()[0]).catalog == 0
