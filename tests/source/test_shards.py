"""Shards by URI: paths, globs, braces, buckets, and one-line errors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from orchestrator.config import ConfigError, WebDatasetSource
from orchestrator.source import open_source
from orchestrator.source.shards import digest, find_shards
from orchestrator.storage.uri_lists import split_uri
from tests.support.shard_files import all_images, pairs, write_sidecar, write_tar

ENDINGS = (".tar", ".tgz")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(12):
            (tmp_path / folder / f"{i:05d}.tar").write_bytes(b"x" * i)
            (tmp_path / folder / f"{i:05d}_stats.json").write_text("{}")
    (tmp_path / "a" / "00003.parquet").write_bytes(b"sidecar")
    (tmp_path / "empty").mkdir()
    # as `datasets.save_to_disk` writes one split, or several
    (tmp_path / "saved" / "train").mkdir(parents=True)
    (tmp_path / "saved" / "train" / "data-00000-of-00001.arrow").write_bytes(b"x")
    (tmp_path / "saved" / "train" / "state.json").write_text("{}")
    return tmp_path


def names(uri: str | list[str], pool: Path) -> list[str]:
    return [os.path.relpath(shard.uri, pool) for shard in find_shards(uri, endings=ENDINGS)]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a/00003.tar", ["a/00003.tar"]),
        ("a", [f"a/{i:05d}.tar" for i in range(12)]),
        ("a/", [f"a/{i:05d}.tar" for i in range(12)]),
        ("a/*", [f"a/{i:05d}.tar" for i in range(12)]),
        ("a/0000?.tar", [f"a/{i:05d}.tar" for i in range(10)]),
        ("a/0000[1-3].tar", ["a/00001.tar", "a/00002.tar", "a/00003.tar"]),
        ("a/{00000..00010}.tar", [f"a/{i:05d}.tar" for i in range(11)]),
        ("{a,b}/0001{0,1}.tar", ["a/00010.tar", "a/00011.tar", "b/00010.tar", "b/00011.tar"]),
        ("?/00002.tar", ["a/00002.tar", "b/00002.tar"]),
        ("{a,b}/*1.tar", ["a/00001.tar", "a/00011.tar", "b/00001.tar", "b/00011.tar"]),
    ],
)
def test_a_uri_gives_the_expected_shards(
    pool: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: list[str]
) -> None:
    assert names(f"{pool}/{uri}", pool) == expected
    monkeypatch.chdir(pool)
    assert names(uri, pool) == expected


def test_a_list_is_sorted_and_unique(pool: Path) -> None:
    uris = [f"{pool}/b/00001.tar", f"{pool}/a/0000[01].tar", f"{pool}/a/00001.tar"]
    assert names(uris, pool) == ["a/00000.tar", "a/00001.tar", "b/00001.tar"]


def test_a_shard_has_size_sidecar_and_version(pool: Path) -> None:
    for uri in ("a/00003.tar", "a", "a/{00003..00003}.tar", "a/{00000..00011}.tar"):
        shard = next(s for s in find_shards(f"{pool}/{uri}", endings=ENDINGS, sidecars=True) if s.name == "00003.tar")
        assert shard.num_bytes == 3
        assert shard.sidecar_uri == f"{pool}/a/00003.parquet"
        assert len(shard.version.split()) == 2


def test_the_digest_depends_on_the_files(pool: Path) -> None:
    before = digest(find_shards(f"{pool}/a", endings=ENDINGS))
    assert digest(find_shards(f"{pool}/a/*.tar", endings=ENDINGS)) == before
    os.utime(pool / "a" / "00003.tar", (1, 1))
    assert digest(find_shards(f"{pool}/a", endings=ENDINGS)) != before


def test_a_path_with_special_characters_is_taken_literally(tmp_path: Path) -> None:
    folder = tmp_path / "run[1] {x}"
    folder.mkdir()
    (folder / "0.tar").write_bytes(b"x")
    assert len(find_shards(str(folder), endings=ENDINGS)) == 1
    assert len(find_shards(str(folder / "0.tar"), endings=ENDINGS)) == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nowhere", "no such path: .*nowhere"),
        ("nowhere/0.tar", "no such path: .*nowhere/0.tar"),
        ("empty", r"no shards in .*empty; expected names ending in .tar .tgz"),
        ("a/00003.parquet", r"cannot read .*00003.parquet; expected a name ending in .tar .tgz"),
        ("a/*.parquet", r"nothing matches .*a/\*.parquet; expected names ending in .tar .tgz"),
        ("saved", r"no shards in .*/saved; .*; \.arrow and \.feather files are not read: write them as Parquet"),
        ("saved/train", r"no shards in .*/train; .*; \.arrow and .* datasets\.load_from_disk\(FOLDER\)\.to_parquet"),
        ("saved/train/*.arrow", r"nothing matches .*arrow; .* write them as Parquet"),
        ("saved/train/data-00000-of-00001.arrow", r"cannot read .*arrow; expected .* write them as Parquet"),
        ("a/x*.tar", "nothing matches"),
        ("nowhere/*.tar", "nothing matches"),
        ("a/{00009..00015}.tar", r"4 of the 7 files of .* are missing: .*00012.tar, .*00013.tar, .*00014.tar, \.\.\."),
        ("a/{00000..00015}.tar", r"4 of the 16 files of .* are missing: .*00012.tar"),
        ("a/{00009..00012.tar", "unbalanced braces"),
    ],
)
def test_missing_shards_give_a_one_line_error(pool: Path, uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        find_shards(f"{pool}/{uri}", endings=ENDINGS)
    assert str(error.value).startswith("source.uri: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("uri", [None, "", ()])
def test_an_unset_uri_is_an_error(uri: str | None) -> None:
    with pytest.raises(ConfigError, match=r"source\.uri is not set"):
        find_shards(uri, endings=ENDINGS)


def test_messages_name_the_setting_of_the_uri(pool: Path) -> None:
    with pytest.raises(ConfigError, match=r"^evaluation\.retrieval\.uri: no such path"):
        find_shards(f"{pool}/nowhere", endings=ENDINGS, setting="evaluation.retrieval.uri")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("{pool}/a/00001.tar::{pool}/b/00002.tar", ["a/00001.tar", "b/00002.tar"]),
        ("{pool}/a/{{00001..00002}}.tar::{pool}/b/0000[3].tar", ["a/00001.tar", "a/00002.tar", "b/00003.tar"]),
        ("a/00001.tar::b/00002.tar::", ["a/00001.tar", "b/00002.tar"]),
        ("{pool}/we::ird", ["we::ird/0.tar"]),
        ("{pool}/we::ird/*.tar", ["we::ird/0.tar"]),
        ("{pool}/we::ird/0.tar", ["we::ird/0.tar"]),
        ("we::ird/0.tar", ["we::ird/0.tar"]),
    ],
)
def test_two_colons_join_several_uris(
    pool: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: list[str]
) -> None:
    (pool / "we::ird").mkdir()
    (pool / "we::ird" / "0.tar").write_bytes(b"x")
    monkeypatch.chdir(pool)
    assert names(uri.format(pool=pool), pool) == expected


def test_chained_urls_of_fsspec_are_not_split() -> None:
    for uri in ("simplecache::s3://b/a.tar", "zip://*.tar::s3://b/a.zip", "filecache::zip://a.tar::gs://b/a.zip"):
        assert split_uri(uri) == [uri]
    assert split_uri("s3://b/{0..2}.tar::gs://c/1.tar") == ["s3://b/{0..2}.tar", "gs://c/1.tar"]


def test_pairs_are_read_from_a_folder_with_two_colons_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "we::ird").mkdir()
    entries = pairs(2)
    write_tar(tmp_path / "we::ird" / "0.tar", entries)
    source = open_source(WebDatasetSource(uri=str(tmp_path / "we::ird")))
    assert all_images(source, source.parts()[0]) == [data for name, data in entries if name.endswith(".jpg")]


def test_files_of_macos_are_no_shards(pool: Path) -> None:
    (pool / "a" / "._00003.tar").write_bytes(b"x")
    (pool / "a" / ".DS_Store").write_bytes(b"x")
    (pool / "__MACOSX").mkdir()
    (pool / "__MACOSX" / "00001.tar").write_bytes(b"x")
    assert names(f"{pool}/a", pool) == names(f"{pool}/a/*.tar", pool) == [f"a/{i:05d}.tar" for i in range(12)]
    assert names(f"{pool}/*/00001.tar", pool) == ["a/00001.tar", "b/00001.tar"]
    for ending in (".parquet", ".npy"):
        folder = pool / f"x{ending}"
        folder.mkdir()
        for name in ("0", "._0"):
            (folder / f"{name}{ending}").write_bytes(b"x")
        assert [shard.name for shard in find_shards(str(folder), endings=(ending,))] == [f"0{ending}"]


def test_shards_one_folder_down_are_named_in_the_error(pool: Path) -> None:
    with pytest.raises(ConfigError, match=r"its folder a has some: for all of its folders use .*/\*/\*$") as error:
        find_shards(str(pool), endings=ENDINGS)
    assert len(names(str(error.value).rpartition(" use ")[2], pool)) == 24


def test_shards_in_the_memory_file_system() -> None:
    fs = fsspec.filesystem("memory")
    for i in range(3):
        fs.pipe_file(f"/shards/{i}.tar", b"x")
    found = [find_shards(f"memory://shards{tail}", endings=ENDINGS) for tail in ("", "/*.tar", "/{0..2}.tar")]
    assert [shard.name for shard in found[0]] == ["0.tar", "1.tar", "2.tar"]
    assert found[0] == found[1] == found[2]
    assert fs.cat_file(found[0][0].uri) == b"x"
    fs.rm("/shards", recursive=True)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3").clear_instance_cache()
    fs = fsspec.filesystem("s3")
    fs.mkdir("bucket")
    yield fs
    fs.clear_instance_cache()
    server.stop()


def test_shards_in_a_bucket(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for i in range(2):
        path = write_tar(tmp_path / f"{i:05d}.tar", pairs(5 + i))
        bucket.pipe_file(f"bucket/pool/{path.name}", path.read_bytes())
    sidecar = write_sidecar(tmp_path / "00001.parquet", [{"key": "0002", "status": "success", "caption": "beside"}])
    bucket.pipe_file("bucket/pool/00001.parquet", sidecar.read_bytes())
    local = open_source(WebDatasetSource(uri=str(tmp_path)))
    identities = []
    for uri in ("s3://bucket/pool/{00000..00001}.tar", "s3://bucket/pool/*.tar", "s3://bucket/pool"):
        remote = open_source(WebDatasetSource(uri=uri))
        identities.append(remote.identity())
        parts = remote.parts()
        assert [part.shard.uri for part in parts] == ["s3://bucket/pool/00000.tar", "s3://bucket/pool/00001.tar"]
        for ours, theirs in zip(parts, local.parts(), strict=True):
            assert remote.catalog(ours).table.equals(local.catalog(theirs).table)
            for rows in (None, [0, 2, 4]):
                assert all_images(remote, ours, rows) == all_images(local, theirs, rows)
    assert identities[0] == identities[1] == identities[2]
    with pytest.raises(ConfigError, match=r"2 of the 4 files of s3://.* are missing: bucket/pool/00002.tar"):
        open_source(WebDatasetSource(uri="s3://bucket/pool/{00000..00003}.tar"))
    with pytest.raises(ConfigError, match="no such path: s3://bucket/other"):
        open_source(WebDatasetSource(uri="s3://bucket/other"))
