"""Caption tables: formats, parts, keys, errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.config import ConfigError, TableSource
from orchestrator.source import CATALOG_SCHEMA, CaptionTable, PartCatalog, Status, open_source
from orchestrator.source.row_groups import cut

ROWS: list[dict[str, Any]] = [
    {
        "key": f"k{i}",
        "caption": None if i == 2 else f'caption "{i}", ü',
        "url": f"http://x/{i}",
        "width": 300 + i,
        "height": 200,
        "NSFW": "UNLIKELY",
    }
    for i in range(10)
]


def open_at(path: Path, **settings: object) -> CaptionTable:
    source = open_source(TableSource(uri=str(path), **settings))  # type: ignore[arg-type]
    assert isinstance(source, CaptionTable)
    assert not source.has_images
    return source


def first_catalog(path: Path, **settings: object) -> PartCatalog:
    source = open_at(path, **settings)
    return source.catalog(source.parts()[0])


def text_of(kind: str) -> bytes:
    import csv
    import io

    if kind in ("jsonl", "ndjson"):
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    out = io.StringIO()
    writer = csv.DictWriter(out, list(ROWS[0]), delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def write(folder: Path, ending: str) -> Path:
    path = folder / f"table.{ending}"
    kind, _, compression = ending.partition(".")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4)
        return path
    data = text_of(kind)
    if compression == "zst":
        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, "zstd") as stream:
            stream.write(data)
        data = out.getvalue().to_pybytes()
    path.write_bytes(gzip.compress(data) if compression == "gz" else data)
    return path


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "ndjson", "csv.gz", "jsonl.gz", "tsv.zst"])
def test_every_format_gives_the_same_catalog(tmp_path: Path, ending: str) -> None:
    source = open_at(write(tmp_path, ending))
    (part,) = source.parts()
    catalog = source.catalog(part)
    table = catalog.table
    assert table.schema == CATALOG_SCHEMA
    for name in ("key", "caption", "url", "width", "height"):
        assert table[name].to_pylist() == [row[name] for row in ROWS]
    assert table["status"].to_pylist() == [Status.MISSING_CAPTION if i == 2 else Status.OK for i in range(10)]
    assert table["image_size"].null_count == 10
    assert catalog.problems == {"missing_caption": 1}
    assert catalog.examples == [f"table.{ending}/k2: missing caption"]
    own = source.rows(part)
    assert own.column_names == list(ROWS[0])
    assert own["NSFW"].to_pylist() == ["UNLIKELY"] * 10
    assert own["caption"].to_pylist() == [row["caption"] for row in ROWS]


@pytest.mark.parametrize(
    ("part_rows", "expected"),
    [(100, [(0, 10)]), (8, [(0, 8), (8, 2)]), (4, [(0, 4), (4, 4), (8, 2)]), (3, [(0, 3), (3, 1), (4, 3), (7, 3)])],
)
def test_parts_of_a_parquet_table_cover_its_rows(
    tmp_path: Path, part_rows: int, expected: list[tuple[int, int]]
) -> None:
    path = write(tmp_path, "parquet")
    whole = first_catalog(path).table
    source = open_at(path, part_rows=part_rows)
    parts = source.parts()
    assert [(part.first_row, part.num_rows) for part in parts] == expected
    assert [part.index for part in parts] == list(range(len(parts)))
    assert pa.concat_tables([source.catalog(part).table for part in parts]).combine_chunks() == whole.combine_chunks()
    assert pa.concat_tables([source.rows(part) for part in parts]).to_pylist() == ROWS


@pytest.mark.parametrize("sizes", [[], [5], [0, 3, 0], [10, 1, 1, 25, 4], [7] * 6])
@pytest.mark.parametrize("part_rows", [1, 3, 7, 100])
def test_cut_covers_every_row_once(sizes: list[int], part_rows: int) -> None:
    ranges = cut(sizes, part_rows)
    assert [row for first, num in ranges for row in range(first, first + num)] == list(range(sum(sizes)))
    assert all(0 < num <= part_rows for _, num in ranges)


def test_parts_of_a_folder_are_ordered_by_uri(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "b.parquet")
    (tmp_path / "a.csv").write_text("caption\nx\ny\n")
    (tmp_path / "c.tsv").write_text("caption\nz\n")
    source = open_at(tmp_path)
    assert [part.shard.name for part in source.parts()] == ["a.csv", "b.parquet", "c.tsv"]
    captions = [source.catalog(part).table["caption"].to_pylist() for part in source.parts()]
    assert captions == [["x", "y"], ["a"], ["z"]]


def test_keys_from_laion_like_columns(tmp_path: Path) -> None:
    path = tmp_path / "laion.parquet"
    table = pa.table(
        {
            "SAMPLE_ID": [2980002347.0, 4.0, None],
            "URL": ["a", "b", "c"],
            "TEXT": ["x", "y", "z"],
            "WIDTH": [640.0, float("nan"), 0.0],
        }
    )
    pq.write_table(table, path)
    rows = first_catalog(path, caption_column="TEXT").table.to_pylist()
    assert [row["key"] for row in rows] == ["2980002347", "4", "2"]
    assert [row["url"] for row in rows] == ["a", "b", "c"]
    assert [row["width"] for row in rows] == [640, None, None]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_a_nan_key_is_replaced_by_the_row_number(tmp_path: Path, kind: pa.DataType) -> None:
    keys = pa.array([1.0, float("nan"), None, 7.0], kind)
    pq.write_table(pa.table({"key": keys, "caption": list("abcd")}), tmp_path / "t.parquet")
    catalog = first_catalog(tmp_path / "t.parquet")
    assert catalog.table["key"].to_pylist() == ["1", "1", "2", "7"]
    assert catalog.problems == {"missing_key": 2, "duplicate_key": 1}
    assert catalog.examples[0] == "t.parquet: row 1 has no key; its row number is its key"


def test_without_a_key_column_the_keys_are_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"caption": list("abcde")}), path, row_group_size=2)
    source = open_at(path, part_rows=2)
    keys = [key for part in source.parts() for key in source.catalog(part).table["key"].to_pylist()]
    assert keys == ["0", "1", "2", "3", "4"]


def test_a_named_key_column_is_used_and_its_duplicates_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,caption\n007,a\n007,b\n8,c\n")
    catalog = first_catalog(path, key_column="id")
    assert catalog.table["key"].to_pylist() == ["007", "007", "8"]
    assert catalog.problems == {"duplicate_key": 1}


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_missing_caption_column_is_an_error_that_lists_the_columns(tmp_path: Path, ending: str) -> None:
    source = open_at(write(tmp_path, ending), caption_column="TEXT")
    with pytest.raises(ConfigError, match="has no column 'TEXT'; its columns: key, caption, url"):
        [source.catalog(part) for part in source.parts()]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", b"caption,url\na,b\nc,d,e\n"),
        ("t.csv", b'caption,url\na,"b\nc,d,e\n'),
        ("t.jsonl", b'{"caption": "a"}\nnot json\n'),
    ],
)
def test_an_invalid_line_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"{name} cannot be") as error:
        first_catalog(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_undecodable_bytes_are_replaced_and_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"caption\nfine\ncaf\xe9\nfine too\n")
    catalog = first_catalog(path)
    assert catalog.table["caption"].to_pylist() == ["fine", "caf\ufffd", "fine too"]
    assert catalog.problems == {"bad_utf8": 1}
    assert catalog.examples == [f"{name}: line 3 is not UTF-8"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_parquet_text_that_is_not_utf8_is_replaced_and_counted(tmp_path: Path, kind: pa.DataType) -> None:
    raw = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    column = raw if kind == pa.binary() else raw.cast(pa.large_binary() if kind == pa.large_string() else pa.binary())
    if kind != pa.binary():
        column = pa.Array.from_buffers(kind, 3, column.buffers())
    pq.write_table(pa.table({"caption": column}), tmp_path / "t.parquet")
    catalog = first_catalog(tmp_path / "t.parquet")
    assert catalog.table["caption"].to_pylist() == ["fine", "caf\ufffd", None]
    assert catalog.problems == {"bad_utf8": 1, "missing_caption": 1}


@pytest.mark.parametrize("caption", [{"en": "a"}, [{"en": "a"}], [1, 2]])
def test_a_caption_column_of_records_is_an_error(tmp_path: Path, caption: object) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"caption": caption}))
    with pytest.raises(ConfigError, match=r"source.caption_column: t.jsonl: column caption is .*; expected text"):
        first_catalog(tmp_path / "t.jsonl")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_first_of_several_captions_is_used_and_counted(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    lists = [["a", "b"], ["", "c"], [], None, ["d"]]
    if kind == "parquet":
        pq.write_table(pa.table({"caption": lists}), path)
    else:
        path.write_text("".join(json.dumps({"caption": one}) + "\n" for one in [*lists[:4], "d"]))
    catalog = first_catalog(path)
    assert catalog.table["caption"].to_pylist() == ["a", "c", None, None, "d"]
    assert catalog.problems == {"several_captions": 1, "missing_caption": 2}


def test_a_damaged_parquet_is_a_broken_shard(tmp_path: Path) -> None:
    write(tmp_path, "parquet")
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    source = open_at(tmp_path)
    catalogs = [source.catalog(part) for part in source.parts()]
    assert [catalog.broken for catalog in catalogs] == [True, False]


def test_the_identity_depends_on_the_relevant_settings(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet")
    identity = open_at(path).identity()
    assert open_at(tmp_path).identity() == identity
    assert open_at(path, part_rows=3).identity() != identity
    assert open_at(path, key_column="url").identity() != identity


def test_reading_images_of_a_table_is_an_error(tmp_path: Path) -> None:
    source = open_at(write(tmp_path, "csv"))
    (part,) = source.parts()
    with pytest.raises(TypeError, match="no images"):
        source.images(part, source.catalog(part).table)


def test_only_the_catalog_columns_of_a_parquet_table_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "0.parquet")
    (tmp_path / "1.csv").write_bytes(text_of("csv"))
    source = open_at(tmp_path)
    of_parquet, of_text = map(source.reads, source.parts())
    assert 0 < of_parquet.catalog < (tmp_path / "0.parquet").stat().st_size
    assert of_text.catalog == (tmp_path / "1.csv").stat().st_size
    assert of_text.images is None
