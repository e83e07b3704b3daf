"""What tars may hold: several tars in one file, links, sparse files, formats of images, files of macOS."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.config import WebDatasetSource
from orchestrator.data.image_decode import decode
from orchestrator.source import PartCatalog, Status, open_source
from orchestrator.source.tar import split_name
from tests.support.shard_files import Entry, all_images, pair, pairs, picture, write_tar


def opened(path: Path) -> tuple[PartCatalog, list[bytes | None]]:
    """The catalog of a tar, and the images of its pairs."""
    source = open_source(WebDatasetSource(uri=str(path)))
    (part,) = source.parts()
    return source.catalog(part), all_images(source, part)


def encoded(kind: str, **options: Any) -> bytes:
    """An image of 40 x 30 pixels."""
    out = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tars_in_one_file_are_read_one_after_the_other(tmp_path: Path, mode: str) -> None:
    entries = pairs(6)
    parts = [write_tar(tmp_path / f"{i}", entries[i : i + 6], mode) for i in range(0, len(entries), 6)]
    both = tmp_path / "both.tar"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    catalog, images = opened(both)
    assert catalog.table["key"].to_pylist() == [f"{i:04d}" for i in range(6)]
    assert images == [data for name, data in entries if name.endswith(".jpg")]
    assert (catalog.problems, catalog.broken) == ({}, False)


def test_a_second_tar_that_is_cut_off_is_a_truncated_shard(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / str(i), pair(str(i), i)).read_bytes() for i in range(2))
    (tmp_path / "0.tar").write_bytes(first + second[:2000])
    catalog, _ = opened(tmp_path / "0.tar")
    assert catalog.table["key"].to_pylist() == ["0"]
    assert catalog.problems == {"truncated_shard": 1}


def test_other_data_after_the_end_is_counted_and_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(1))
    whole = path.read_bytes()
    path.write_bytes(whole + b"a signature")
    catalog, _ = opened(path)
    assert (catalog.table.num_rows, catalog.problems, catalog.broken) == (1, {"trailing_data": 1}, False)
    assert catalog.examples[0].startswith(f"0.tar: the data from byte {len(whole):,} on")
    path.write_bytes(whole + bytes(100_000))
    assert opened(path)[0].problems == {}, "only zeros"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_link_stands_for_its_target(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "0.tar"
    image, text = picture(3), b"a cat"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in (("x/a.jpg", image), ("x/a.txt", text)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind, name, target in (
            (tarfile.LNKTYPE, "y/b.jpg", "x/a.jpg"),
            (tarfile.LNKTYPE, "y/b.txt", "./x/a.txt"),
            (tarfile.SYMTYPE, "y/c.jpg", "../x/a.jpg"),
            (tarfile.SYMTYPE, "y/c.txt", "b.txt"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    catalog, images = opened(path)
    assert catalog.table["key"].to_pylist() == ["x/a", "y/b", "y/c"]
    # the last one is a link to a link
    assert catalog.table["caption"].to_pylist() == ["a cat"] * 3
    assert images == [image] * 3
    assert catalog.problems == {}


def test_links_that_lead_nowhere_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("a.jpg", picture(0)), ("a.txt", b"a cat"), ("b.jpg", picture(1))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (("b.txt", "c.txt"), ("c.txt", "b.txt")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    catalog, _ = opened(path)
    assert catalog.table["caption"].to_pylist() == ["a cat", None]
    assert catalog.problems == {"dangling_link": 2, "missing_caption": 1}


def test_a_sparse_member_is_counted_and_not_read(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar here")
    (tmp_path / "a.jpg").write_bytes(picture(0))
    with (tmp_path / "a.jpg").open("ab") as file:
        file.truncate(1 << 20)
    (tmp_path / "a.txt").write_text("a cat")
    for form in ("gnu", "pax"):
        command = ["tar", "--sparse", f"--format={form}", "-cf", f"{form}.tar", "a.jpg", "a.txt"]
        subprocess.run(command, cwd=tmp_path, check=True)
        if (tmp_path / f"{form}.tar").stat().st_size > 1 << 20:
            pytest.skip("this file system has no sparse files")
        catalog, images = opened(tmp_path / f"{form}.tar")
        assert catalog.problems == {"sparse_member": 1, "missing_image": 1}
        assert f"{form}.tar/a.jpg: a sparse file" in catalog.examples[0]
        assert images == [None]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_never_raises(tmp_path: Path, form: int, data: st.DataObject) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content in pair("b/" + "x" * 80 + "/" + "é" * 40, 1) + pair("a", 2):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(content))
    damaged = bytearray(out.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        block = place // 512 * 512
        damaged[place] = data.draw(st.sampled_from(b"0179xLKS \0\x80\xff"))
        header = damaged[block : block + 512]
        if data.draw(st.booleans()):
            # correct the checksum of the header
            damaged[block + 148 : block + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    path = tmp_path / "0.tar"
    path.write_bytes(damaged)
    catalog, images = opened(path)
    assert len(images) == catalog.table.num_rows


@pytest.mark.parametrize(
    ("extension", "kind"),
    [
        ("gif", "GIF"), ("bmp", "BMP"), ("tiff", "TIFF"), ("tif", "TIFF"), ("avif", "AVIF"), ("jfif", "JPEG"),
        ("jpg", "AVIF"), ("jpg", "GIF"), ("png", "WEBP"), ("JPG", "JPEG"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_catalog_has_the_size_of_the_decoded_image(
    tmp_path: Path, extension: str, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(kind, exif=exif.tobytes())
    catalog, images = opened(write_tar(tmp_path / "0.tar", [(f"a.{extension}", data), ("a.txt", b"x")]))
    assert catalog.problems == {}
    assert images == [data]
    boxes: list[tuple[int, int]] = []

    def seen(width: int, height: int) -> Any:
        boxes.append((width, height))
        from orchestrator.data.image_decode import squash_crop

        return squash_crop(width, height)

    decode(data, size=8, crop=seen, max_pixels=10_000)
    size = (catalog.table["width"][0].as_py(), catalog.table["height"][0].as_py())
    # Pillow turns a TIFF by itself; nothing turns the others, as in open_clip
    assert size == boxes[0] == ((30, 40) if kind == "TIFF" and orientation == 6 else (40, 30))


def test_a_jpeg_with_megabytes_of_metadata_is_read(tmp_path: Path) -> None:
    data = encoded("JPEG", icc_profile=bytes(2 << 20))
    for mode, name in (("w", "0.tar"), ("w:gz", "1.tar")):
        catalog, images = opened(write_tar(tmp_path / name, [("a.jpg", data), ("a.txt", b"x")], mode))
        assert (catalog.table["width"][0].as_py(), catalog.table["height"][0].as_py()) == (40, 30)
        assert (catalog.problems, images) == ({}, [data])


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="x" width="40" height="30"></svg>',
        b"P6 40 30 255\n" + bytes(3600),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500),
    ],
)
def test_formats_that_are_not_decoded_are_bad_images_before_training(tmp_path: Path, data: bytes) -> None:
    catalog, _ = opened(write_tar(tmp_path / "0.tar", [("a.jpg", data), ("a.txt", b"x")]))
    assert catalog.table["status"].to_pylist() == [Status.BAD_IMAGE]


def test_a_dot_in_a_key_gives_a_hint(tmp_path: Path) -> None:
    catalog, _ = opened(write_tar(tmp_path / "0.tar", [("photo.v2.jpg", picture(0)), ("photo.v2.txt", b"x")]))
    assert catalog.problems == {"missing_image": 1}
    assert "a key ends at the first dot of a name, so the extension is 'v2.jpg'" in catalog.examples[0]


def test_a_pair_without_an_image_names_its_members(tmp_path: Path) -> None:
    catalog, _ = opened(write_tar(tmp_path / "0.tar", [("a.heic", b"x"), ("a.txt", b"x")]))
    assert catalog.examples == ["0.tar/a: no image among its members .heic, .txt"]


def test_files_of_macos_are_not_pairs(tmp_path: Path) -> None:
    extra: list[Entry] = [
        ("a/._0000.jpg", b"x"), ("._0000.jpg", b"x"), ("a/.DS_Store", b"x"), ("./a/._0000.txt", b"x"),
        ("__MACOSX/a/0000.jpg", b"x"), ("a/__MACOSX/0000.jpg", b"x"),
    ]  # fmt: skip
    entries = [(f"a/{name}", data) for name, data in pairs(2)]
    catalog, _ = opened(write_tar(tmp_path / "0.tar", [*extra, *entries]))
    assert catalog.table["key"].to_pylist() == ["a/0000", "a/0001"]
    assert catalog.problems == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.c/d.jpg", ("a/b.c/d", "jpg")),
        ("./a.tar.JPG", ("a", "tar.jpg")),
        ("a/.hidden.jpg", None),
        ("a.b/c", None),
    ],
)
def test_names_of_members(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected
