"""JSON lines: numbers, surrogates, lists, bad lines, arrays."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import ConfigError, TableSource
from orchestrator.source import CaptionTable, PartCatalog, open_source
from orchestrator.source.json_text import replace_lone_escapes


def open_at(path: Path, data: bytes) -> CaptionTable:
    path.write_bytes(data)
    source = open_source(TableSource(uri=str(path)))
    assert isinstance(source, CaptionTable)
    return source


def catalog_of(path: Path, data: bytes) -> PartCatalog:
    source = open_at(path, data)
    return source.catalog(source.parts()[0])


@pytest.mark.parametrize(
    ("data", "captions"),
    [
        (rb'{"caption": "\ud800x"}', ["\ufffdx"]),
        (rb'{"caption": "x\udc00"}', ["x\ufffd"]),
        (rb'{"caption": "\ud83d\ude00"}', ["😀"]),
        (rb'{"caption": "\\ud800"}', ["\\ud800"]),
        (b'\xef\xbb\xbf{"caption": "a"}', ["a"]),
        ('{"caption": "ä"}'.encode("utf-16"), ["ä"]),
        (b'{"caption": "a", "score": NaN}\n{"caption": NaN, "score": Infinity}\n', ["a", None]),
        (b'{"caption": "a"}\n\n{"caption": "b"}\r\n', ["a", "b"]),
        (b'{"caption": ["a"]}\n{"caption": "b"}\n', ["a", "b"]),
        (b'{"caption": "a"}\n{"caption": ["b"]}\n', ["a", "b"]),
        (b'{"caption": "a", "x": 1}\n{"caption": "b", "x": [1]}\n', ["a", "b"]),
        (b'[{"caption": "a"},\n {"caption": "b"}]', ["a", "b"]),
        (gzip.compress(b'{"caption": "a"}\n', mtime=0), ["a"]),
    ],
)
def test_json_is_read_as_python_reads_it(tmp_path: Path, data: bytes, captions: list[str | None]) -> None:
    assert catalog_of(tmp_path / "t.jsonl", data).table["caption"].to_pylist() == captions


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"caption": "a"}\n{"caption": "b"\n{"caption": "c"}\n', r"line 2, column 16: Expecting ',' delimiter"),
        (b'{"caption": "a"}\n{"caption": "b"} x\n', r"line 2, column 18: Extra data"),
        (b'{"caption": "a"}\nnull\n', r"line 2 is null, expected an object"),
        (b'[{"caption": "a"},\n 3]', r"element 2 is 3, expected an object"),
        (b'[{"caption": "a"},\n {"caption": ]', r"line 2, column 14: Expecting value"),
        (
            b'{"caption": "a"}\n{"caption": {"en": "b"}}\n',
            r'field .caption. is {"en": "b"} in one row, expected a',
        ),
        (b"[" * 100_000, r"its array: .*recursion"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path: Path, data: bytes, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"t.jsonl cannot be read as JSON lines: {text}") as error:
        catalog_of(tmp_path / "t.jsonl", data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\n", b"[]"])
def test_an_empty_file_is_a_broken_shard(tmp_path: Path, data: bytes) -> None:
    catalog = catalog_of(tmp_path / "t.jsonl", data)
    assert catalog.broken
    assert catalog.examples == ["t.jsonl: is empty"]


@pytest.mark.parametrize("key", [2**63, 2**64 - 1, 2**64, 10**30, -(2**63) - 1])
def test_integers_of_any_size_are_keys(tmp_path: Path, key: int) -> None:
    source = open_at(tmp_path / "t.jsonl", "".join(f'{{"caption": "a", "key": {one}}}\n' for one in (key, 7)).encode())
    (part,) = source.parts()
    assert source.catalog(part).table["key"].to_pylist() == [str(key), "7"]
    assert [int(one) for one in source.rows(part)["key"].to_pylist()] == [key, 7]


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_json_files_are_read_if_they_are_named(tmp_path: Path, name: str) -> None:
    data = b'{"caption": "a"}\n{"caption": "b"}\n'
    source = open_at(tmp_path / name, gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert source.catalog(source.parts()[0]).table["caption"].to_pylist() == ["a", "b"]
    (tmp_path / "u.jsonl").write_bytes(data)
    folder = open_source(TableSource(uri=str(tmp_path)))
    assert [part.shard.name for part in folder.parts()] == ["u.jsonl"], "img2dataset writes statistics as JSON"


PIECES = ["\\ud83d", "\\ude00", "\\uDBFF", "\\udc00", "\\\\", "\\n", "u", "ud83d", "x", "ä"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_only_lone_surrogates_are_replaced(text: str) -> None:
    found = json.loads(replace_lone_escapes(f'"{text}"'.encode()))
    expected = "".join("\ufffd" if 0xD800 <= ord(one) < 0xE000 else one for one in json.loads(f'"{text}"'))
    assert found == expected
