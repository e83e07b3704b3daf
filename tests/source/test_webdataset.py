"""Tar shards: catalog, images, damaged and compressed tars, sidecars."""

from __future__ import annotations

import json
import pickle
import random
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from orchestrator.config import WebDatasetSource
from orchestrator.source import CATALOG_SCHEMA, PartCatalog, Status, open_source, samples
from orchestrator.source.webdataset import WebDataset
from tests.support.shard_files import all_images, pair, pairs, picture, write_sidecar, write_tar


def catalog_of(path: Path | str) -> PartCatalog:
    source = open_source(WebDatasetSource(uri=str(path)))
    return source.catalog(source.parts()[0])


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp"])
@pytest.mark.parametrize("with_json", [True, False])
def test_the_catalog_and_the_images_of_a_tar(tmp_path: Path, extension: str, with_json: bool) -> None:
    entries = pairs(5, extension=extension, with_json=with_json)
    path = write_tar(tmp_path / "0.tar", entries)
    source = open_source(WebDatasetSource(uri=str(path)))
    (part,) = source.parts()
    catalog = source.catalog(part)
    table = catalog.table
    assert table.schema == CATALOG_SCHEMA
    assert table["key"].to_pylist() == [f"{i:04d}" for i in range(5)]
    assert table["caption"].to_pylist() == [f"a {i:04d}" for i in range(5)]
    assert table["width"].to_pylist() == [40, 41, 42, 43, 44]
    assert table["height"].to_pylist() == [30] * 5
    assert table["status"].to_pylist() == [Status.OK] * 5
    assert table["uid"].to_pylist() == ([f"uid{i:04d}" for i in range(5)] if with_json else [None] * 5)
    assert catalog.problems == {}
    assert not catalog.broken
    images = {name.split(".")[0]: data for name, data in entries if name.endswith(extension)}
    data = path.read_bytes()
    for row in table.to_pylist():
        assert data[row["image_offset"] : row["image_offset"] + row["image_size"]] == images[row["key"]]
    assert all_images(source, part) == list(images.values())
    assert all_images(source, part, [1, 4]) == [images["0001"], images["0004"]]


def test_a_sidecar_is_joined_by_key_and_status(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(6))
    rows: list[dict[str, Any]] = [
        {
            "key": f"{i:04d}",
            "status": "success",
            "caption": f"from parquet {i}",
            "width": 100 + i,
            "height": 50,
            "sha256": f"sha{i}",
            "url": f"u{i}",
            "error_message": None,
        }
        for i in range(5)
    ] + [
        {
            "key": "0005",
            "status": "failed_to_download",
            "caption": "never came",
            "width": None,
            "height": None,
            "sha256": None,
            "url": "u5",
            "error_message": "404",
        },
        {
            "key": "0099",
            "status": "failed_to_resize",
            "caption": "never came",
            "width": None,
            "height": None,
            "sha256": None,
            "url": "u99",
            "error_message": "x",
        },
    ]
    random.Random(3).shuffle(rows)
    write_sidecar(tmp_path / "0.parquet", rows)
    table = catalog_of(tmp_path / "0.tar").table
    assert table["caption"].to_pylist() == [f"from parquet {i}" for i in range(5)] + ["a 0005"]
    assert table["width"].to_pylist() == [100, 101, 102, 103, 104, 45]
    assert table["uid"].to_pylist() == [f"sha{i}" for i in range(5)] + ["uid0005"]
    assert table["url"].to_pylist() == [f"u{i}" for i in range(5)] + ["http://x/0005"]


def test_with_a_damaged_sidecar_the_tar_is_used(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(2))
    (tmp_path / "0.parquet").write_bytes(b"PAR1 no parquet at all PAR1")
    catalog = catalog_of(tmp_path / "0.tar")
    assert catalog.table["caption"].to_pylist() == ["a 0000", "a 0001"]
    assert catalog.problems == {"unreadable_sidecar": 1}
    assert not catalog.broken


def test_a_sidecar_changes_the_identity(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(2))
    without = open_source(WebDatasetSource(uri=str(path))).identity()
    write_sidecar(tmp_path / "0.parquet", [{"key": "0000", "status": "success", "caption": "x"}])
    assert open_source(WebDatasetSource(uri=str(path))).identity() != without
    assert open_source(WebDatasetSource(uri=str(tmp_path))).identity() != without


def test_members_of_a_key_are_joined_in_any_order(tmp_path: Path) -> None:
    entries = pairs(4)
    images = [entry for entry in entries if entry[0].endswith("jpg")]
    rest = [entry for entry in entries if not entry[0].endswith("jpg")]
    random.Random(1).shuffle(rest)
    for mode, name in (("w", "a.tar"), ("w:gz", "a.tar.gz")):
        path = write_tar(tmp_path / name, rest + images[::-1], mode)
        source = open_source(WebDatasetSource(uri=str(path)))
        (part,) = source.parts()
        table = source.catalog(part).table
        assert table["key"].to_pylist() == list(dict.fromkeys(name.split(".")[0] for name, _ in rest))
        by_key = {name.split(".")[0]: data for name, data in images}
        assert all_images(source, part) == [by_key[key] for key in table["key"].to_pylist()]


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "0.tar.gz"), ("w:gz", "0.tgz"), ("w:gz", "compressed.tar")])
def test_a_compressed_tar_gives_the_same_catalog_without_offsets(tmp_path: Path, mode: str, name: str) -> None:
    entries = pairs(7, with_json=False)
    plain = open_source(WebDatasetSource(uri=str(write_tar(tmp_path / "plain.tar", entries))))
    packed = open_source(WebDatasetSource(uri=str(write_tar(tmp_path / name, entries, mode))))
    expected = plain.catalog(plain.parts()[0]).table
    table = packed.catalog(packed.parts()[0]).table
    assert table["image_offset"].null_count == 7
    assert table.drop_columns("image_offset").equals(expected.drop_columns("image_offset"))
    for rows in (None, [0], [2, 3, 6], []):
        assert all_images(packed, packed.parts()[0], rows) == all_images(plain, plain.parts()[0], rows)


def test_missing_and_bad_members_are_counted_and_named(tmp_path: Path) -> None:
    entries = [
        *pair("0", 0),
        ("1.jpg", picture(1)),
        ("2.txt", b"no image"),
        ("3.jpg", b"<html>404</html>"), ("3.txt", b"bad image"),
        ("4.jpg", picture(4)), ("4.txt", b"caf\xe9"),
        ("5.jpg", picture(5)), ("5.json", b"{no json"),
        ("6.jpg", picture(6)), ("6.jpg", picture(7)), ("6.txt", b"twice"),
        ("7.jpg", picture(8)), ("7.txt", b""),
        ("readme", b"no sample"), ("._0.jpg", b"no sample"),
    ]  # fmt: skip
    source = open_source(WebDatasetSource(uri=str(write_tar(tmp_path / "00002.tar", entries))))
    (part,) = source.parts()
    catalog = source.catalog(part)
    rows = {row["key"]: row for row in catalog.table.to_pylist()}
    assert list(rows) == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert [Status(row["status"]).name for row in rows.values()] == [
        "OK", "MISSING_CAPTION", "MISSING_IMAGE", "BAD_IMAGE", "OK", "MISSING_CAPTION", "OK", "OK",
    ]  # fmt: skip
    assert rows["1"]["caption"] is None
    assert rows["4"]["caption"] == "caf\ufffd"
    assert rows["7"]["caption"] == ""
    assert catalog.problems == {
        "missing_caption": 2, "missing_image": 1, "bad_image": 1, "bad_utf8": 1, "bad_json": 1, "duplicate_key": 1,
    }  # fmt: skip
    assert "00002.tar/1: no caption" in catalog.examples
    assert not catalog.broken
    images = all_images(source, part)
    assert images[2] is None
    assert images[3] == b"<html>404</html>"
    assert images[6] == picture(6)


def test_the_header_of_an_image_is_enough_for_its_size(tmp_path: Path) -> None:
    big = picture(0, width=900, height=700, kind="PNG")
    padded = big[:33] + b"\0" * (len(big) - 33)  # only the header is valid
    table = catalog_of(write_tar(tmp_path / "0.tar", [("a.png", padded), ("a.txt", b"x")])).table
    assert (table["width"][0].as_py(), table["height"][0].as_py()) == (900, 700)
    long_exif = picture(0)[:2] + b"\xff\xe1\xff\xf0" + b"\0" * 65518 + picture(0)[2:]
    table = catalog_of(write_tar(tmp_path / "1.tar", [("a.jpg", long_exif), ("a.txt", b"x")])).table
    assert (table["width"][0].as_py(), table["height"][0].as_py()) == (40, 30)


def test_keys_may_have_long_names_and_folders(tmp_path: Path) -> None:
    key = "folder.with.dots/" + "é" * 150
    table = catalog_of(write_tar(tmp_path / "0.tar", [(f"./{key}.jpg", picture(0)), (f"./{key}.txt", b"x")])).table
    assert table["key"].to_pylist() == [key]


def headers_and_ends(path: Path) -> list[tuple[str, int, int, int]]:
    import tarfile

    with tarfile.open(path) as tar:
        return [(m.name, m.offset, m.offset_data, m.offset_data + -(-m.size // 512) * 512) for m in tar]


def whole_pairs(members: list[tuple[str, int, int, int]], position: int) -> int:
    """Return the number of pairs with all members before the position."""
    ends: dict[str, int] = {}
    for name, _, _, end in members:
        ends[name.split(".")[0]] = end
    return sum(end <= position for end in ends.values())


def test_a_truncated_tar_keeps_the_pairs_before_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "whole.tar", pairs(4))
    data, members = path.read_bytes(), headers_and_ends(path)
    original = all_images(WebDataset.open(str(path)), WebDataset.open(str(path)).parts()[0])
    cuts = {at for _, header, payload, end in members[3:] for at in (header, header + 100, payload, payload + 3, end)}
    for position in sorted(cuts):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(data[:position])
        source = WebDataset.open(str(cut))
        catalog = source.catalog(source.parts()[0])
        num_pairs = whole_pairs(members, position)
        assert catalog.broken, position
        assert catalog.problems == {"truncated_shard": 1}, position
        assert catalog.examples == [f"cut.tar: truncated after {num_pairs} pairs"]
        assert catalog.table["status"].to_pylist() == [Status.OK] * num_pairs
        assert list(source.images(source.parts()[0], catalog.table)) == original[:num_pairs]


def test_a_tar_keeps_the_pairs_before_a_damaged_header(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(4))
    header = headers_and_ends(path)[6][1]
    data = bytearray(path.read_bytes())
    data[header : header + 512] = b"\x55" * 512
    path.write_bytes(data)
    catalog = catalog_of(path)
    assert catalog.broken
    assert catalog.table.num_rows == 2


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_compressed_tar_keeps_some_pairs(tmp_path: Path, fraction: float) -> None:
    path = write_tar(tmp_path / "0.tar.gz", pairs(20), "w:gz")
    whole = all_images(WebDataset.open(str(path)), WebDataset.open(str(path)).parts()[0])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    source = WebDataset.open(str(path))
    catalog = source.catalog(source.parts()[0])
    assert catalog.broken
    assert catalog.problems == {"truncated_shard": 1}
    assert 0 < catalog.table.num_rows <= 20
    images = list(source.images(source.parts()[0], catalog.table))
    assert images == whole[: len(images)]


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"x" * 5000, b"\x1f\x8bnot really gzip"])
def test_a_file_that_is_not_a_tar_is_an_unreadable_shard(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    catalog = catalog_of(tmp_path / "0.tar")
    assert catalog.broken
    assert catalog.problems == {"unreadable_shard": 1}
    assert catalog.table.num_rows == 0
    assert catalog.table.schema == CATALOG_SCHEMA


def test_an_empty_tar_is_not_broken(tmp_path: Path) -> None:
    catalog = catalog_of(write_tar(tmp_path / "0.tar", []))
    assert catalog.table.num_rows == 0
    assert not catalog.broken


def test_a_failed_read_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(3))
    source = open_source(WebDatasetSource(uri=str(path)))
    (part,) = source.parts()
    table = source.catalog(part).table
    path.unlink()
    with pytest.raises(FileNotFoundError):
        source.catalog(part)
    with pytest.raises(FileNotFoundError):
        list(source.images(part, table))


def test_a_shard_that_shrank_since_the_catalog_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(3))
    source = open_source(WebDatasetSource(uri=str(path)))
    (part,) = source.parts()
    table = source.catalog(part).table
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OSError, match="changed since"):
        list(source.images(part, table))


@pytest.mark.parametrize("protocol", ["memory"])
def test_a_remote_shard_gives_the_same_pairs(tmp_path: Path, protocol: str) -> None:
    entries = [*pairs(30, with_json=False), ("big.png", picture(1, width=300, height=300, kind="PNG"))]
    path = write_tar(tmp_path / "0.tar", entries)
    local = open_source(WebDatasetSource(uri=str(path)))
    fs = fsspec.filesystem(protocol)
    fs.pipe_file("/pool/0.tar", path.read_bytes())
    remote = open_source(WebDatasetSource(uri=f"{protocol}://pool/*.tar"))
    (part,) = remote.parts()
    assert part.shard.uri.startswith(f"{protocol}://")
    assert remote.catalog(part).table.equals(local.catalog(local.parts()[0]).table)
    for rows in (None, [0, 1, 17, 30], [5]):
        assert all_images(remote, part, rows) == all_images(local, local.parts()[0], rows)
    fs.rm("/pool", recursive=True)


def test_an_unpaired_surrogate_in_json_is_replaced(tmp_path: Path) -> None:
    for number, (written, expected) in enumerate(
        [("cut \\ud83d", "cut \ufffd"), ("\\ude00 cut", "\ufffd cut"), ("\\ud83d\\ude00", "\U0001f600")]
    ):
        data = f'{{"caption": "{written}", "url": "{written}"}}'.encode()
        table = catalog_of(write_tar(tmp_path / f"{number}.tar", [("a.jpg", picture(0)), ("a.json", data)])).table
        assert table["caption"].to_pylist() == table["url"].to_pylist() == [expected]


def test_sources_and_parts_can_be_pickled(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(2))
    source = open_source(WebDatasetSource(uri=str(tmp_path)))
    again = pickle.loads(pickle.dumps(source))
    part = pickle.loads(pickle.dumps(source.parts()[0]))
    assert again.catalog(part).table.equals(source.catalog(source.parts()[0]).table)


def test_the_json_caption_is_used_if_there_is_no_txt(tmp_path: Path) -> None:
    fields = json.dumps({"caption": "said in json", "sha256": "s", "width": 7, "height": 9}).encode()
    row = catalog_of(write_tar(tmp_path / "0.tar", [("a.jpg", picture(0)), ("a.json", fields)])).table.to_pylist()[0]
    assert (row["caption"], row["uid"]) == ("said in json", "s")
    assert (row["width"], row["height"]) == (40, 30)  # the size in the image's header, not the JSON's


@pytest.mark.parametrize("power", [45, 62, 70])
@pytest.mark.parametrize("extension", ["txt", "jpg"])
def test_a_header_with_a_huge_size_breaks_the_shard(tmp_path: Path, power: int, extension: str) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(2))
    header = tarfile.TarInfo(f"9999.{extension}")
    header.size = 2**power
    whole = path.read_bytes().rstrip(b"\0")
    whole += bytes(-len(whole) % tarfile.BLOCKSIZE)
    path.write_bytes(whole + header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    catalog = catalog_of(path)
    assert catalog.table["key"].to_pylist() == ["0000", "0001"]
    assert catalog.broken


def test_a_text_that_is_too_long_is_counted_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_TEXT", 1000)
    entries = [("0.jpg", picture(0)), ("0.txt", bytes(2000)), ("1.jpg", picture(1)), ("1.txt", b"a picture")]
    catalog = catalog_of(write_tar(tmp_path / "0.tar", entries))
    assert catalog.table["caption"].to_pylist() == [None, "a picture"]
    assert catalog.problems == {"long_text": 1, "missing_caption": 1}
