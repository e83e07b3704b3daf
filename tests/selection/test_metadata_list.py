"""The metadata of MetaCLIP as people have it: JSON or lines, with a byte-order mark, with brackets, or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.selection.metadata_list import read_entries

BOM = b"\xef\xbb\xbf"


def entries_of(folder: Path, data: bytes, name: str = "metadata.txt") -> list[str]:
    (folder / name).write_bytes(data)
    return read_entries(str(folder / name))


@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize("name", ["metadata.json", "metadata.txt", "metadata"])
@pytest.mark.parametrize("layout", ['["dog", "cat", "dog"]', '\n [ \r\n "dog",\n"cat"]\n', '["\\u0064og","cat"]'])
def test_json_lists(layout: str, name: str, bom: bytes, tmp_path: Path) -> None:
    assert entries_of(tmp_path, bom + layout.encode(), name) == ["dog", "cat"]


@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "lines",
    [
        ["dog", "cat"],
        ["[citation needed]", "dog"],
        ["[1]", "dog"],
        ["[1]"],
        ["[", "dog"],
        ["dog", '["cat"]'],
        ["{", "}"],
        # lines for str.splitlines, but not in a text editor
        ["New\u2028York", "a\x85b", "c\x0bd"],
        [" spaced ", "Zürich"],
    ],
)
def test_text_has_one_entry_a_line(lines: list[str], end: str, bom: bytes, tmp_path: Path) -> None:
    data = bom + end.join([*lines, "", lines[0], "  ", ""]).encode()
    assert entries_of(tmp_path, data) == lines


def test_half_a_surrogate_pair_is_the_replacement_character(tmp_path: Path) -> None:
    data = json.dumps(["a\ud83d b", "\udc00", "\U0001f600"]).encode()
    assert entries_of(tmp_path, data) == ["a\ufffd b", "\ufffd", "\U0001f600"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("m.txt", b'["dog", "cat"', r"m\.txt begins like JSON.*Expecting ',' delimiter: line 1 column 14"),
        ("m.json", b"dog\ncat\n", r"is named \.json, but is not JSON \(Expecting value: line 1 column 1"),
        ("m.json", b"[" * 200_000, "but is not JSON"),
        ("m.txt", b'{"dog": 3, "cat": 4}', "is a JSON object; expected a JSON list of strings"),
        ("m.json", b"3", "is a JSON number"),
        ("m.json", b"null", "is a JSON null"),
        ("m.json", b'["dog", 3]', "entry 2 is a JSON number"),
        ("m.json", b'["dog", ["cat"]]', "entry 2 is a JSON list"),
        ("m.json", b'["dog", "cat", " "]', "entry 3 is blank"),
        ("m.json", b"[]", "has no entries"),
        ("m.txt", b"[]", "has no entries"),
        ("m.txt", b"\n \n", "has no entries"),
        ("m.txt", b"", "has no entries"),
        ("m.txt", BOM, "has no entries"),
        ("m.txt", "dog\nZürich".encode("latin-1"), "byte 5 of .* is not UTF-8"),
        ("m.txt", "dog\ncat".encode("utf-16"), "byte 0 of .* is not UTF-8"),
    ],
)
def test_other_files_are_refused_in_one_line(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said) as error:
        read_entries(str(tmp_path / name), "selection.metaclip.metadata")
    assert str(error.value).startswith("selection.metaclip.metadata: ")
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metadata: no file .*none\.txt; expected a JSON list of strings, or a text"):
        read_entries(str(tmp_path / "none.txt"))
