"""Which member, JSON key or column holds the captions of tars, and what happens to values that are no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import WebDatasetSource
from orchestrator.source import PartCatalog, open_source
from orchestrator.source.captions import caption_text, without_surrogates
from tests.support.shard_files import Entry, picture, write_sidecar, write_tar

IMAGE = picture(0)


def catalog(folder: Path, entries: list[Entry], caption_column: str | None = None) -> PartCatalog:
    """The catalog of a tar of these members."""
    path = write_tar(folder / "0.tar", entries)
    source = open_source(WebDatasetSource(uri=str(path), caption_column=caption_column))
    return source.catalog(source.parts()[0])


def with_json(**fields: Any) -> list[Entry]:
    """A pair that can have its caption only in its JSON."""
    return [("a.jpg", IMAGE), ("a.json", json.dumps(fields).encode())]


@pytest.mark.parametrize(
    ("entries", "taken"),
    [
        ([("a.jpg", IMAGE), ("a.txt", b"a cat")], "member txt"),
        ([("a.jpg", IMAGE), ("a.text", b"a cat")], "member text"),
        ([("a.jpg", IMAGE), ("a.caption", b"a cat")], "member caption"),
        ([("a.jpg", IMAGE), ("a.CAPTION", b"a cat")], "member caption"),
        ([("a.jpg", IMAGE), ("a.0.txt", b"a cat")], "member 0.txt"),
        ([("a.jpg", IMAGE), ("a.txt", "\ufeffa cat".encode())], "member txt"),
        ([("a.jpg", IMAGE), ("a.txt", b"a cat"), ("a.caption", b"a dog")], "member txt"),
        ([("a.jpg", IMAGE), ("a.caption", b"a cat"), ("a.txt", b" ")], "member caption"),
        ([("a.txt", b""), *with_json(caption="a cat")], "JSON caption"),
        ([*with_json(caption="a dog"), ("a.txt", b"a cat")], "member txt"),
        (with_json(caption="a cat"), "JSON caption"),
        (with_json(text="a cat"), "JSON text"),
        (with_json(TEXT="a cat"), "JSON TEXT"),
        (with_json(caption=None, text="a cat"), "JSON text"),
        (with_json(Caption="a cat"), "JSON Caption"),
        (with_json(captions=["a cat"]), "JSON captions"),
        ([("a.jpg", IMAGE), ("a.json", b'\xef\xbb\xbf{"caption": "a cat"}')], "JSON caption"),
    ],
)
def test_usual_names_are_tried_by_default(tmp_path: Path, entries: list[Entry], taken: str) -> None:
    found = catalog(tmp_path, entries)
    assert found.table["caption"].to_pylist() == ["a cat"]
    assert found.captions.taken == {taken: 1}
    assert found.problems == {}


@pytest.mark.parametrize("name", ["blip", "BLIP", ".blip"])
def test_the_setting_names_a_member_a_key_or_a_column_of_the_sidecar(tmp_path: Path, name: str) -> None:
    members = [("a.jpg", IMAGE), ("a.txt", b"a dog"), ("a.blip", b"a cat")]
    assert catalog(tmp_path, members, name).table["caption"].to_pylist() == ["a cat"]
    key = [("a.txt", b"a dog"), *with_json(blip="a cat", caption="a dog")]
    assert catalog(tmp_path, key, name).table["caption"].to_pylist() == ["a cat"]
    write_sidecar(tmp_path / "0.parquet", [{"key": "a", "caption": "a dog", "blip": "a cat"}])
    assert catalog(tmp_path, members[:2], name).table["caption"].to_pylist() == ["a cat"]


def test_the_setting_changes_the_identity_only_if_it_is_set(tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "0.tar", with_json(text="a cat")))
    plain = open_source(WebDatasetSource(uri=path)).identity()
    assert set(plain) == {"format", "num_shards", "shards"}, "stored catalogs are found by it"
    named = open_source(WebDatasetSource(uri=path, caption_column="text")).identity()
    assert named == {**plain, "caption_column": "text"}


def test_pairs_without_a_caption_show_what_they_have(tmp_path: Path) -> None:
    found = catalog(tmp_path, [("a.prompt", b"a cat"), *with_json(description="a cat", url="http://x")])
    assert found.table["caption"].to_pylist() == [None]
    assert set(found.captions.seen) == {".prompt", ".jpg", ".json", "JSON description", "JSON url"}


@pytest.mark.parametrize(
    ("value", "expected", "problem"),
    [
        (["a cat", "a dog"], "a cat", "several_captions"),
        ([None, " ", "a cat"], "a cat", None),
        (["a cat"], "a cat", None),
        ([], None, None),
        ([{"raw": "a cat"}], None, "caption_not_text"),
        ({"en": "a cat"}, None, "caption_not_text"),
        (True, None, "caption_not_text"),
        (5, "5", None),
        (float("nan"), None, None),
        (b"a cat", "a cat", None),
    ],
)
def test_lists_and_objects_in_json(value: Any, expected: str | None, problem: str | None, tmp_path: Path) -> None:
    assert caption_text(value) == (expected, problem)
    if not isinstance(value, bytes):
        found = catalog(tmp_path, with_json(caption=value))
        assert found.table["caption"].to_pylist() == [expected]
        missing = {} if expected else {"missing_caption": 1}
        assert found.problems == missing | ({problem: 1} if problem else {})


@pytest.mark.parametrize("blank", [None, "", "  \n", True, {"en": "x"}, [" "], []])
def test_a_caption_without_words_in_json_does_not_hide_another_name(tmp_path: Path, blank: Any) -> None:
    found = catalog(tmp_path, with_json(caption=blank, text="a cat"))
    assert found.table["caption"].to_pylist() == ["a cat"]
    assert found.captions.taken == {"JSON text": 1}


def test_of_numbered_members_the_first_is_used_and_the_pair_counted(tmp_path: Path) -> None:
    found = catalog(tmp_path, [("a.jpg", IMAGE), ("a.10.txt", b"ten"), ("a.2.txt", b"two"), ("a.3.txt", b"three")])
    assert found.table["caption"].to_pylist() == ["two"]
    assert found.problems == {"several_captions": 1}
    assert found.examples == ["0.tar/a: 3 captions, the first is used"]


def test_a_sidecar_without_captions_does_not_hide_those_of_the_tar(tmp_path: Path) -> None:
    write_sidecar(tmp_path / "0.parquet", [{"key": "a", "width": 7, "height": 9, "uid": "from parquet"}])
    found = catalog(tmp_path, [("a.jpg", IMAGE), ("a.txt", b"a cat")])
    row = found.table.to_pylist()[0]
    assert (row["caption"], row["width"], row["uid"]) == ("a cat", 7, "from parquet")
    assert found.captions.taken == {"member txt": 1}
    found = catalog(tmp_path, with_json(caption="a cat", uid="from JSON"))
    assert (found.table["caption"][0].as_py(), found.table["uid"][0].as_py()) == ("a cat", "from parquet")
    # the order of the members does not matter
    both = [*with_json(caption="a dog"), ("a.txt", b"a cat")]
    for entries in (both, both[::-1]):
        assert catalog(tmp_path, entries).table["caption"].to_pylist() == ["a cat"]


def test_a_null_caption_of_a_sidecar_is_filled_from_the_tar_unless_that_is_blank(tmp_path: Path) -> None:
    rows = [{"key": key, "status": "success", "caption": text} for key, text in (("a", None), ("b", None), ("c", "x"))]
    write_sidecar(tmp_path / "0.parquet", rows)
    entries = [entry for key in "abc" for entry in ((f"{key}.jpg", IMAGE), (f"{key}.txt", b"y" if key == "a" else b""))]
    assert catalog(tmp_path, entries).table["caption"].to_pylist() == ["y", None, "x"]


def test_a_sidecar_of_other_keys_is_counted_and_named(tmp_path: Path) -> None:
    # pandas turns 00000 into 0
    write_sidecar(tmp_path / "0.parquet", [{"key": number, "caption": "synthetic"} for number in range(2)])
    entries = [(f"{key}.{name}", data) for key in ("00000", "00001") for name, data in (("jpg", IMAGE), ("txt", b"x"))]
    found = catalog(tmp_path, entries)
    assert found.table["caption"].to_pylist() == ["x", "x"]
    assert found.problems == {"unmatched_sidecar": 1}
    assert found.examples == [
        "0.tar: none of the 2 keys of its Parquet file is in the tar (keys there: '00000', ..., in the Parquet file: "
        "'0', ...); the file is not used"
    ]


def test_rows_of_a_sidecar_that_are_not_used_are_counted(tmp_path: Path) -> None:
    texts = (("a", "first"), ("a", "second"), ("b", "other"), ("c", "failed"))
    rows = [{"key": key, "status": "failed" if key == "c" else "success", "caption": text} for key, text in texts]
    write_sidecar(tmp_path / "0.parquet", rows)
    found = catalog(tmp_path, [("a.jpg", IMAGE), ("a.txt", b"x")])
    assert found.table["caption"].to_pylist() == ["first"]
    assert found.problems == {"duplicate_key": 1, "row_without_pair": 1}
    assert found.examples == [
        "0.tar/a: a second row in its Parquet file, ignored",
        "0.tar/b: in its Parquet file, but not in the tar",
    ]


def test_a_sidecar_with_other_types_is_read_as_meant(tmp_path: Path) -> None:
    write_sidecar(tmp_path / "0.parquet", [{"key": b"a", "TEXT": ["a cat", "a dog"], "uid": b"u", "url": {"a": 1}}])
    found = catalog(tmp_path, [("a.jpg", IMAGE), ("a.txt", b"a bird")])
    row = found.table.to_pylist()[0]
    assert (row["caption"], row["uid"], row["url"]) == ("a cat", "u", None)
    assert found.problems == {"several_captions": 1}
    assert found.captions.taken == {"sidecar TEXT": 1}


def test_lone_surrogates_become_the_replacement_character() -> None:
    assert without_surrogates("a \ud83d b \ude00") == "a \ufffd b \ufffd"
    assert without_surrogates("\U0001f600 caf\u00e9") == "\U0001f600 caf\u00e9"
