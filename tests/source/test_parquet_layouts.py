"""Parquet as others write it: records of images, encodings, words of status, types of keys, sizes and URLs."""

from __future__ import annotations

import decimal
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.config import ConfigError, ParquetSource, TableSource
from orchestrator.data.external_list import ExternalList
from orchestrator.errors import UserError
from orchestrator.source import CaptionTable, ParquetImages, PartCatalog, Status, open_source
from tests.support.shard_files import all_images, picture

IMAGES = [picture(number, width=40 + number) for number in range(3)]
CAPTIONS = ["a", "b", "c"]
RECORD = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images_at(path: Path, table: pa.Table, **settings: object) -> ParquetImages:
    pq.write_table(table, path)
    source = open_source(ParquetSource(uri=str(path), **settings))  # type: ignore[arg-type]
    assert isinstance(source, ParquetImages)
    return source


def catalog_of(path: Path, table: pa.Table, **settings: object) -> PartCatalog:
    pq.write_table(table, path)
    source = open_source(TableSource(uri=str(path), **settings))  # type: ignore[arg-type]
    assert isinstance(source, CaptionTable)
    (part,) = source.parts()
    # an export takes rows of all columns
    assert source.rows(part).take([0]).num_rows == 1
    return source.catalog(part)


@pytest.mark.parametrize("image_column", [None, "image", "image.bytes"])
def test_images_of_the_datasets_library(tmp_path: Path, image_column: str | None) -> None:
    records = [
        {"bytes": IMAGES[0], "path": "x"},
        {"bytes": None, "path": "y"},
        None,
        {"bytes": IMAGES[2], "path": None},
    ]
    table = pa.table({"id": [{"n": 1}] * 4, "image": pa.array(records, RECORD), "text": ["a", "b", "c", "d"]})
    source = images_at(tmp_path / "t.parquet", table, image_column=image_column)
    (part,) = source.parts()
    catalog = source.catalog(part)
    assert catalog.table.select(["key", "caption", "width", "image_offset"]).to_pylist() == [
        {"key": "0", "caption": "a", "width": 40, "image_offset": 0},
        {"key": "1", "caption": "b", "width": None, "image_offset": None},
        {"key": "2", "caption": "c", "width": None, "image_offset": None},
        {"key": "3", "caption": "d", "width": 42, "image_offset": 3},
    ]
    assert catalog.problems == {"missing_image": 2}
    assert all_images(source, part) == [IMAGES[0], None, None, IMAGES[2]]
    assert 0 < (source.reads(part).images or 0) < source.reads(part).catalog


def test_sizes_and_statistics_spare_the_images_of_records(tmp_path: Path) -> None:
    records = pa.array([{"bytes": image, "path": "x"} for image in IMAGES], RECORD)
    table = pa.table({"image": records, "text": CAPTIONS, "width": [1, 2, 3], "height": [4, 5, 6]})
    source = images_at(tmp_path / "t.parquet", table)
    (part,) = source.parts()
    reads = source.reads(part)
    assert reads.images is not None
    assert reads.catalog < reads.images
    assert source.catalog(part).table["width"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())])
def test_encodings_of_images(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([IMAGES[0], None, IMAGES[0]])
    images = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    table = pa.table({"jpg": images, "key": CAPTIONS, "caption": pa.array(CAPTIONS, pa.large_string())})
    source = images_at(tmp_path / "t.parquet", table)
    (part,) = source.parts()
    assert source.catalog(part).table["status"].to_pylist() == [Status.OK, Status.MISSING_IMAGE, Status.OK]
    assert all_images(source, part) == [IMAGES[0], None, IMAGES[0]]


@pytest.mark.parametrize(
    ("columns", "settings", "text"),
    [
        ({"image": CAPTIONS}, {}, "column 'image' of t.parquet is string; expected binary"),
        ({"photo": IMAGES}, {}, r"source.image_column is not set, and t.parquet has no column with a usual name \(jpg"),
        ({"image": [{"a": 1}] * 3}, {}, "column 'image' of t.parquet is struct<a: int64>; expected binary"),
        ({"image": [{"bytes": b""}] * 3}, {"image_column": "image.path"}, "record with such a field 'path'"),
        ({"jpg": IMAGES}, {"key_column": "id"}, "source.key_column: t.parquet has no column 'id'"),
        (
            {"jpg": IMAGES, "k": [[1]] * 3},
            {"key_column": "k"},
            r"source.key_column: t.parquet: column k is list<.*>; exp",
        ),
        (
            {"jpg": IMAGES, "status": [[1]] * 3},
            {},
            r"column status is list<.*>; expected text, or source.success_status=n",
        ),
    ],
)
def test_columns_of_another_kind_are_an_error_before_anything_is_read(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, str], text: str
) -> None:
    source = images_at(tmp_path / "t.parquet", pa.table({"caption": CAPTIONS, **columns}), **settings)
    with pytest.raises(ConfigError, match=text):
        source.parts()


@pytest.mark.parametrize(
    ("status", "words", "has_image", "unknown"),
    [
        (["success", "failed_to_download", None], None, [True, False, False], 0),
        (["SUCCESS", "ok", "error"], None, [True, True, False], 1),
        ([True, False, True], None, [True, False, True], 1),
        ([200, 404, 404], None, [True, False, False], 2),
        ([1, 0, 1], None, [False, False, False], 3),
        ([1, 0, 1], ("1",), [True, False, True], 1),
        ([1.0, None, float("nan")], ("1",), [True, False, False], 0),
        (["published", "draft", "draft"], (), [False, False, False], 3),
    ],
)
def test_words_of_success(
    tmp_path: Path, status: list[Any], words: tuple[str, ...] | None, has_image: list[bool], unknown: int
) -> None:
    table = pa.table({"jpg": IMAGES, "caption": CAPTIONS, "status": status})
    source = images_at(tmp_path / "t.parquet", table, **({} if words is None else {"success_status": words}))
    catalog = source.catalog(source.parts()[0])
    assert [one == Status.OK for one in catalog.table["status"].to_pylist()] == has_image
    assert catalog.problems.get("unknown_status", 0) == unknown
    if unknown:
        assert "have status '" in catalog.examples[0]
        assert catalog.examples[0].endswith("if they have images, add it to source.success_status")


def test_a_status_without_meaning(tmp_path: Path) -> None:
    table = pa.table({"jpg": IMAGES, "caption": CAPTIONS, "status": ["published", "draft", None]})
    source = images_at(tmp_path / "t.parquet", table, success_status=None)
    assert source.catalog(source.parts()[0]).problems == {}
    default = replace(source, config=ParquetSource(uri=source.config.uri))
    assert source.identity() == {**default.identity(), "success_status": None}


IDS = [uuid.UUID(int=number * 7919**9) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (pa.array([one.bytes for one in IDS], pa.uuid()), [str(one) for one in IDS]),
        (pa.array([one.bytes for one in IDS], pa.binary(16)), [one.hex for one in IDS]),
        (pa.array([one.hex.encode() for one in IDS], pa.binary(32)), [one.hex for one in IDS]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array(["x", None, "z"], pa.string_view()), ["x", "1", "z"]),
        (pa.array([2**64 - 1, 2, None], pa.uint64()), [str(2**64 - 1), "2", "2"]),
        (pa.array([1e19, 2.0, float("nan")]), [str(10**19), "2", "2"]),
        (pa.array([decimal.Decimal(5)] * 3, pa.decimal256(60, 0)), ["5"] * 3),
        (pa.array([[1], [2], [3]]), ["0", "1", "2"]),
        (pa.array([{"a": 1}] * 3), ["0", "1", "2"]),
        (pa.array([1, 2, 3], pa.duration("s")), ["0", "1", "2"]),
    ],
)
def test_types_of_keys(tmp_path: Path, keys: pa.Array, expected: list[str]) -> None:
    catalog = catalog_of(tmp_path / "t.parquet", pa.table({"key": keys, "caption": CAPTIONS}))
    assert catalog.table["key"].to_pylist() == expected
    is_used = expected != ["0", "1", "2"]
    assert catalog.problems.get("ignored_column", 0) == (0 if is_used else 1)


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        (pa.array([640, None, 3]).dictionary_encode(), [640, None, 3]),
        (pa.array([b"640", b"x", None]), [640, None, None]),
        (pa.array(["640", "", "x"]), [640, None, None]),
        (pa.array([decimal.Decimal("64.0")] * 3), [64, 64, 64]),
        (pa.array([1.5, float("nan"), float("inf")], pa.float16()), [1, None, None]),
        (pa.array([2**63] * 3, pa.uint64()), [None] * 3),
        (pa.nulls(3), [None] * 3),
        (pa.array([[1], [2], [3]]), [None] * 3),
        (pa.array([True] * 3), [None] * 3),
    ],
)
def test_types_of_widths(tmp_path: Path, widths: pa.Array, expected: list[int | None]) -> None:
    catalog = catalog_of(tmp_path / "t.parquet", pa.table({"caption": CAPTIONS, "width": widths}))
    assert catalog.table["width"].to_pylist() == expected


@pytest.mark.parametrize("column", [pa.array([["a"]] * 3), pa.array([{"a": 1}] * 3)])
def test_lists_and_records_that_nobody_asked_for_are_ignored_and_named(tmp_path: Path, column: pa.Array) -> None:
    catalog = catalog_of(tmp_path / "t.parquet", pa.table({"caption": CAPTIONS, "url": column, "uid": column}))
    assert catalog.table["url"].null_count == catalog.table["uid"].null_count == 3
    assert catalog.problems == {"ignored_column": 2}
    assert catalog.examples[1].startswith(f"t.parquet: column url is {str(column.type)[:5]}")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    twice = pa.table([pa.array(CAPTIONS)] * 3, names=["caption", "url", "url"])
    catalog = catalog_of(tmp_path / "t.parquet", twice)
    assert catalog.examples == ["t.parquet: column url is string and string; not used"]
    with pytest.raises(ConfigError, match=r"source.caption_column: t.parquet has two columns 'caption'; expected one"):
        catalog_of(tmp_path / "t.parquet", pa.table([pa.array(CAPTIONS)] * 2, names=["caption", "caption"]))


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (pa.table({"uid": pa.array([one.bytes for one in IDS], pa.binary(16))}), [one.hex for one in IDS]),
        (pa.table({"uid": pa.array(["a", None]).dictionary_encode()}), ["a", None]),
        (pa.table({"uid": [["a"]]}), "column uid is list<.*>; expected text or numbers"),
        (pa.table([pa.array(["a"])] * 2, names=["uid", "uid"]), "keep.match_column: t.parquet has two columns 'uid'"),
    ],
)
def test_uids_of_external_lists(tmp_path: Path, table: pa.Table, values: list[str | None] | str) -> None:
    pq.write_table(table, tmp_path / "t.parquet")
    listed = ExternalList.find(str(tmp_path), match_by="uid", match_column=None, setting="keep")
    if isinstance(values, list):
        assert [value for piece in listed.pieces() for value in listed.values(piece)] == values
        return
    with pytest.raises(UserError, match=values):
        [listed.values(piece) for piece in listed.pieces()]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (pa.array(['{"a":1}', None, "[]"], pa.json_()), ['{"a":1}', None, "[]"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array(["a", None, "c"], pa.string_view()), ["a", None, "c"]),
        (pa.array([["a"], ["", "b"], None]), ["a", "b", None]),
        (pa.array([["a", "x"], ["b", "y"], ["c", "z"]], pa.list_(pa.string(), 2)), ["a", "b", "c"]),
        (pa.array([["a"], [], ["b"]], pa.large_list(pa.dictionary(pa.int32(), pa.string()))), ["a", None, "b"]),
        (pa.nulls(3), [None, None, None]),
    ],
)
def test_types_of_captions(tmp_path: Path, captions: pa.Array, expected: list[str | None]) -> None:
    catalog = catalog_of(tmp_path / "t.parquet", pa.table({"caption": captions}))
    assert catalog.table["caption"].to_pylist() == expected
