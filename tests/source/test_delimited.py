"""CSV and TSV: quotes, uneven rows, files without a header, other encodings and line ends."""

from __future__ import annotations

import codecs
import gzip
import os
from pathlib import Path

import pytest

from orchestrator.config import ConfigError, TableSource
from orchestrator.source import PartCatalog, open_source

TSV, CSV = "t.tsv", "t.csv"


def catalog_of(folder: Path, name: str, data: bytes | str, **settings: object) -> PartCatalog:
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    source = open_source(TableSource(uri=str(folder / name), **settings))  # type: ignore[arg-type]
    return source.catalog(source.parts()[0])


def captions_of(folder: Path, name: str, data: bytes | str, **settings: object) -> list[str | None]:
    return catalog_of(folder, name, data, **settings).table["caption"].to_pylist()


@pytest.mark.parametrize(
    ("name", "data", "captions"),
    [
        # quotes are text where the file was not written with quotes
        (TSV, 'url\tcaption\n1\t"foo\n2\tbar\n3\tbaz" x\n', ['"foo', "bar", 'baz" x']),
        (TSV, 'url\tcaption\n1\t"foo\n2\tbar"\n', ['"foo', 'bar"']),
        (TSV, 'url\tcaption\n1\t"foo"\n2\ta 5" disk\n', ['"foo"', 'a 5" disk']),
        (TSV, 'caption\n"foo\nbar"\n', ['"foo', 'bar"']),
        (CSV, 'url,caption\n1,a 5" floppy disk\n2,b\n', ['a 5" floppy disk', "b"]),
        (CSV, 'url,caption\n1,"foo\n2,bar\n3,baz\n', ['"foo', "bar", "baz"]),
        (CSV, 'url,caption\n1,"foo" bar\n2,b\n', ['"foo" bar', "b"]),
        # a file that needs its quotes was written with them
        (TSV, 'url\tcaption\n1\t"foo\tbar"\n2\t"x"\n', ["foo\tbar", "x"]),
        (TSV, 'url\tcaption\n1\t"say ""foo"""\n2\tx\n', ['say "foo"', "x"]),
        (TSV, 'url\tcaption\n1\t"foo\nbar"\n2\tx\n', ["foo\nbar", "x"]),
        (TSV, '"url"\t"caption"\n"1"\t"foo"\n', ["foo"]),
        (CSV, 'url,caption\n1,"foo"\n2,"a, b"\n3,"x ""y"""\n', ["foo", "a, b", 'x "y"']),
        (CSV, 'url,caption\n1,"foo\nbar"\n2,x\n', ["foo\nbar", "x"]),
        # as Python's csv: a quote within a field that does not begin with one is text
        (CSV, 'url,caption\n1,"a, b"\n2,a 5" disk\n', ["a, b", 'a 5" disk']),
    ],
)
def test_quotes_are_read_as_the_file_was_written(tmp_path: Path, name: str, data: str, captions: list[str]) -> None:
    assert captions_of(tmp_path, name, data) == captions


@pytest.mark.parametrize(
    ("quoting", "captions"),
    [("none", ['"foo', 'bar"', '"x"']), ("minimal", ["foo\n2,bar", "x"])],
)
def test_the_setting_decides_about_quotes(tmp_path: Path, quoting: str, captions: list[str]) -> None:
    data = 'url,caption\n1,"foo\n2,bar"\n3,"x"\n'
    assert captions_of(tmp_path, CSV, data, quoting=quoting) == captions
    with pytest.raises(ConfigError, match=r"source.quoting: .*t.csv: the quote on line 2 closes on line 3, but each"):
        catalog_of(tmp_path, CSV, data)


def test_rows_of_several_lines_are_counted_with_their_lines(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, CSV, 'url,caption\n1,x\n2,"a\n\nb"\n3,"c\nd"\n')
    assert catalog.table["caption"].to_pylist() == ["x", "a\n\nb", "c\nd"]
    assert catalog.problems == {"multi_line_row": 2}
    assert catalog.examples == [
        "t.csv: lines 3 to 5 are one row, in quotes",
        "t.csv: lines 6 to 7 are one row, in quotes",
    ]


def test_quotes_that_enclose_nothing_are_counted_in_csv(tmp_path: Path) -> None:
    assert catalog_of(tmp_path, CSV, 'url,caption\n1,a 5" disk\n').problems == {"stray_quotes": 1}
    assert catalog_of(tmp_path, TSV, 'url\tcaption\n1\ta 5" disk\n').problems == {}


def test_a_short_row_is_counted_with_its_line(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, CSV, '\n\nurl,caption\n1,"a, b"\n2\n\n3,c\n\n\n')
    assert catalog.table["caption"].to_pylist() == ["a, b", None, None, "c"]
    assert catalog.problems == {"short_row": 2, "missing_caption": 2}
    assert catalog.examples[:2] == ["t.csv: line 5 has 1 of 2 fields", "t.csv: line 6 has 1 of 2 fields"]


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        (
            CSV,
            "url,caption\n1,a\n2,b,c\n3,d,e\n",
            "line 3 has 3 fields, expected 2 as in the header; rows like this: 2",
        ),
        (CSV, '\nurl,caption\r\n1,"a\r\nb"\r\n2,b,c\r\n', r"line 5 has 3 fields, .* or set source.quoting if quotes"),
        (TSV, 'url\tcaption\n1\t"a\n2\tb\tc\n', r"line 3 has 3 fields, .* or set source.quoting if quotes"),
        (CSV, '\nurl,caption\n1,5" x\n2,"b, c\n3,d\n', "line 4 has a quote that nothing closes"),
    ],
)
def test_a_long_row_is_an_error_with_its_line(tmp_path: Path, name: str, data: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} cannot be read as .sv: {text}") as error:
        catalog_of(tmp_path, name, data)
    assert "\n" not in str(error.value)


def test_a_setting_names_the_columns_of_a_file_without_a_header(tmp_path: Path) -> None:
    data = "a dog\thttp://a\na cat\thttp://b\n"
    with pytest.raises(ConfigError, match=r"columns: a dog, http://a; if the first line is a row, .* source.columns"):
        catalog_of(tmp_path, TSV, data)
    catalog = catalog_of(tmp_path, TSV, data, columns=("caption", "url"))
    assert catalog.table.select(["caption", "url"]).to_pylist() == [
        {"caption": "a dog", "url": "http://a"},
        {"caption": "a cat", "url": "http://b"},
    ]
    with pytest.raises(ConfigError, match=r"source.columns has 3 names, and no line has more than 2 fields"):
        catalog_of(tmp_path, TSV, data, columns=("caption", "url", "width"))
    with pytest.raises(ConfigError, match=r"line 1 has 2 fields, expected 1 as in source.columns"):
        catalog_of(tmp_path, TSV, data, columns=("caption",))


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress("url,caption\n1,ä\n".encode(), mtime=0),
        "url,caption\n1,ä\n".encode("utf-8-sig"),
        "url,caption\n1,ä\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "url,caption\n1,ä\n".encode("utf-16-be"),
        "url,caption\n1,ä\n".encode("utf-16-le"),
        "url,caption\n1,ä\n".encode("utf-16-be"),
        "url,caption\n1,ä\n".encode("utf-32"),
        "url,caption\r1,ä\r".encode(),
        "url,caption\r\n1,ä\r\n".encode(),
        "url,caption\n1,ä".encode(),
    ],
)
def test_encodings_and_line_ends(tmp_path: Path, data: bytes) -> None:
    assert captions_of(tmp_path, CSV, data) == ["ä"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"PAR1xxxx", "it is Parquet"),
        (b"PK\x03\x04xx", "it is a zip archive or a spreadsheet"),
        (b"\xff\xfea", "cannot be read as UTF-16-LE"),
        (b"caption,caption\na,b\n", "has two columns 'caption'"),
    ],
)
def test_what_is_no_text_is_an_error(tmp_path: Path, data: bytes, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as error:
        catalog_of(tmp_path, CSV, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (gzip.compress(b"url,caption\n1,a\n", mtime=0)[:-9], "cannot be decompressed"),
        (b"\n\n", "is empty"),
        (b"", "is empty"),
    ],
)
def test_an_empty_or_damaged_file_is_a_broken_shard(tmp_path: Path, data: bytes, text: str) -> None:
    catalog = catalog_of(tmp_path, CSV, data)
    assert catalog.broken
    assert catalog.problems == {"unreadable_shard": 1}
    assert text in catalog.examples[0]


@pytest.mark.parametrize("name", ["caption", "TEXT", "text", "alt_text"])
def test_usual_names_of_captions_are_found(tmp_path: Path, name: str) -> None:
    assert captions_of(tmp_path, TSV, f"URL\t{name}\n1\ta\n") == ["a"]
    with pytest.raises(ConfigError, match=r"source.caption_column is not set, and t.tsv has no column with"):
        catalog_of(tmp_path, TSV, "URL\tname\n1\ta\n")


def test_only_text_files_change_their_fingerprint(tmp_path: Path) -> None:
    def identity(name: str, **settings: object) -> dict[str, object]:
        (tmp_path / name).touch(exist_ok=True)
        os.utime(tmp_path / name, (1, 1))
        return open_source(TableSource(uri=str(tmp_path / name), **settings)).identity()  # type: ignore[arg-type]

    parquet = identity("t.parquet")
    assert set(parquet) == {"format", "caption_column", "key_column", "part_rows", "num_shards", "shards"}
    assert parquet["caption_column"] == "caption"
    assert identity("t.jsonl")["text_version"] == identity("t.csv")["text_version"] == 1
    assert identity("t.csv", quoting="none") != identity("t.csv")
    assert identity("t.jsonl", quoting="none") == identity("t.jsonl")
