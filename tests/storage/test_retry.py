"""A bucket with occasional failures: reads and writes are complete, or the error is one line."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import s3fs
from fsspec.implementations.arrow import ArrowFile, ArrowFSWrapper
from fsspec.implementations.memory import MemoryFileSystem

from orchestrator.data.catalog import Catalog
from orchestrator.engine import lease
from orchestrator.engine.artifact import Artifact
from orchestrator.source import Shard, Source, cache, open_source, parquet, with_cache
from orchestrator.storage import files, retry
from orchestrator.storage.ranges import read_spans
from orchestrator.storage.retry import CutOff, StoreError
from tests.support.faulty_s3 import Fault, FaultyS3
from tests.support.pools import config_of, make_pairs, write_parquet_images, write_tars

BODY = bytes(range(256)) * 400


def source_of(uri: str, tmp_path: Path, kind: str = "webdataset") -> Source:
    return open_source(config_of({"format": kind, "uri": uri}, tmp_path).source)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    server = FaultyS3()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # short pauses and time limits keep the tests fast
    monkeypatch.setattr(retry, "PAUSE_UNIT", 0.01)
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 1)
    # the client must not retry itself, or our retries would not run
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3", skip_instance_cache=True).clear_instance_cache()
    yield server
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(server: FaultyS3, tmp_path: Path) -> str:
    uri = f"s3://{tmp_path.name.replace('_', '-')}-{id(server)}"
    fsspec.filesystem("s3").mkdir(uri)
    files.write(f"{uri}/a.bin", BODY)
    return uri


@pytest.mark.parametrize("kind", ["busy", "broken", "cut", "slow"])
def test_a_read_survives_temporary_failures(kind: str, server: FaultyS3, bucket: str) -> None:
    spans = [(100_000, 2_400), (0, 10), (7, 70_000)]
    expected = [BODY[offset : offset + size] for offset, size in spans]

    def read_through_file() -> bytes:
        with files.open_file(f"{bucket}/a.bin", read_ahead=1000) as file:
            file.seek(300)
            return file.read(5000)

    for read, found in (
        (lambda: files.read(f"{bucket}/a.bin"), BODY),
        (lambda: list(read_spans(f"{bucket}/a.bin", spans)), expected),
        (read_through_file, BODY[300:5300]),
    ):
        server.faults = [fault := Fault(kind, path="a.bin", times=2)]
        assert read() == found
        assert fault.done == 2


@pytest.mark.parametrize("kind", ["busy", "broken"])
def test_a_write_survives_temporary_failures(kind: str, server: FaultyS3, bucket: str) -> None:
    server.faults = [fault := Fault(kind, method="PUT", times=2)]
    files.write(f"{bucket}/b.bin", BODY)
    assert fault.done == 2
    assert files.read(f"{bucket}/b.bin") == BODY


def test_a_permanent_failure_is_one_line(server: FaultyS3, bucket: str) -> None:
    server.faults = [Fault("broken")]
    with pytest.raises(StoreError, match=r"cannot read s3://.*/a\.bin after 8 attempts: .*internal error"):
        files.read(f"{bucket}/a.bin")
    server.faults = [Fault("cut", path="a.bin")]
    with pytest.raises(StoreError, match=r"cannot read s3://.*/a\.bin"):
        list(read_spans(f"{bucket}/a.bin", [(0, 1000)]))
    server.faults = [Fault("broken", method="PUT")]
    with pytest.raises(StoreError, match=r"cannot write s3://.*/b\.bin after 8 attempts"):
        files.write(f"{bucket}/b.bin", BODY)
    server.faults = []
    assert not files.exists(f"{bucket}/b.bin")


class ReturnsErrors(MemoryFileSystem):
    """As fsspec before 2026.5: the first call returns an error among its results and ignores `on_error`."""

    protocol = "returning"
    asked = 0

    def cat_ranges(self, paths: list[str], starts: list[int], ends: list[int], **how: object) -> list[object]:
        type(self).asked += 1
        found = super().cat_ranges(paths, starts, ends)
        return [OSError(errno.EIO, "cut off"), *found[1:]] if self.asked == 1 else found


def test_an_error_among_the_results_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE_UNIT", 0.001)
    fs = ReturnsErrors()
    fs.pipe_file("/returning/a.bin", BODY)
    assert retry.read_ranges(fs, "/returning/a.bin", [(0, 5), (7, 9)]) == [BODY[:5], BODY[7:9]]
    assert fs.asked == 2
    fs.rm("/returning", recursive=True)


def test_each_retry_is_logged_without_secrets(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PAUSE_UNIT", 0.001)
    failures = [OSError(errno.EIO, "no answer from https://anna:pass@host/a?sig=hidden"), ConnectionError("reset")]

    def call() -> bytes:
        if failures:
            raise failures.pop(0)
        return BODY

    assert retry.tried(call, "https://anna:pass@host/a.bin?sig=hidden") == BODY
    first, second = [record.getMessage() for record in caplog.records if record.name == retry.__name__]
    assert first.startswith(
        "cannot read https://***host/a.bin***: attempt 1 of 8 failed: no answer from https://***host"
    )
    assert "attempt 2 of 8 failed: reset; retry in 0.0 s" in second
    assert not {word for word in ("anna", "pass", "hidden") if word in first + second}


def test_expired_credentials_fail_without_retries(server: FaultyS3, bucket: str, tmp_path: Path) -> None:
    server.faults = [fault := Fault("expired", method="GET HEAD PUT")]
    with pytest.raises(
        StoreError,
        match=r"not allowed to read s3://.*a\.bin: .*(token has expired|Bad Request).*refresh the credentials",
    ) as caught:
        files.read(f"{bucket}/a.bin")
    assert "\n" not in str(caught.value)
    assert fault.done <= 2
    with pytest.raises(StoreError, match="not allowed to write"):
        files.write(f"{bucket}/b.bin", b"")
    with pytest.raises(StoreError, match=r"not allowed to read .*pool"):
        source_of(f"{bucket}/pool", tmp_path)


def test_missing_credentials_are_an_error(server: FaultyS3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=r"not allowed to read .*expected valid credentials"):
        files.read(f"{bucket}/a.bin")


def test_a_missing_bucket_is_an_error(server: FaultyS3, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or bucket: 's3://nowhere-to-be-found/a\.bin'"):
        files.read("s3://nowhere-to-be-found/a.bin")
    with pytest.raises(StoreError, match=r"cannot write s3://nowhere-to-be-found/a\.bin: .*bucket"):
        files.write("s3://nowhere-to-be-found/a.bin", b"")
    with pytest.raises(retry.UserError, match="no such path: s3://nowhere-to-be-found/pool"):
        source_of("s3://nowhere-to-be-found/pool", tmp_path)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_truncated_shard_is_retried_and_then_counted_as_broken(
    kind: str, server: FaultyS3, bucket: str, tmp_path: Path
) -> None:
    write = write_tars if kind == "webdataset" else write_parquet_images
    pool = write(tmp_path / "pool", make_pairs(40), num_shards=2)
    files.copy(pool, f"{bucket}/pool")
    source = source_of(f"{bucket}/pool", tmp_path, kind)
    part = source.parts()[0]
    expected = source.catalog(part)
    assert expected.table.num_rows == 20
    assert not expected.problems
    server.faults = [fault := Fault("cut", path="00000", times=2)]
    assert source.catalog(part).table.equals(expected.table)
    assert fault.done == 2
    server.faults = [Fault("cut", path="00000")]
    found = source.catalog(part)
    assert found.broken
    assert found.table.num_rows == 0


def test_a_failure_while_parts_are_listed_does_not_renumber_them(
    server: FaultyS3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "PART_ROWS", 5)
    pool = write_parquet_images(tmp_path / "pool", make_pairs(30), num_shards=3)
    for file in Path(pool).iterdir():
        pq.write_table(pq.read_table(file), file, row_group_size=5)
    files.copy(pool, f"{bucket}/pool")
    source = source_of(f"{bucket}/pool", tmp_path, "parquet")
    parts = source.parts()
    artifact = Artifact.of(str(tmp_path), "catalog", version=1)
    tables = [source.catalog(part).table for part in parts]
    artifact.publish(totals={}, parts=[{"rows": table.num_rows} for table in tables], seconds=0.0)
    assert Catalog(artifact).parts_of(source) == parts
    server.faults = [Fault("cut", path="00001")]
    with pytest.raises(CutOff, match="00001"):
        source.parts()
    server.faults = []
    # the same number of shards, with other contents
    files.write(f"{bucket}/pool/00001.parquet", b"no Parquet")
    with pytest.raises(StoreError, match=r"the source now has 5 parts and its catalog 6"):
        Catalog(artifact).parts_of(source)
    with pytest.raises(StoreError, match="row groups differ from its catalog"):
        list(source.images(parts[0], tables[1]))


def test_a_file_that_became_shorter_is_an_error(server: FaultyS3, bucket: str) -> None:
    with pytest.raises(CutOff, match="changed since it was listed, or the network"):
        list(read_spans(f"{bucket}/a.bin", [(len(BODY) - 10, 20)]))


@pytest.mark.parametrize("kind", ["conflict", "busy", "unheard"])
def test_a_lease_has_one_holder_although_its_creation_fails(kind: str, server: FaultyS3, bucket: str) -> None:
    artifact = Artifact.of(bucket, "numbers", version=1)
    computing = list[bool]()

    def run(number: int) -> None:
        with lease.held(artifact, name="numbers", show=lambda line: None, poll_seconds=0.02) as mine:
            computing.append(mine)
            if mine:
                time.sleep(0.5)
                artifact.publish(totals={}, parts=[], seconds=0.5)

    server.faults = [fault := Fault(kind, method="PUT", path=lease.FILE, times=2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, range(2)))
    assert sorted(computing) == [False, True]
    assert fault.done == 2


def test_a_failed_listing_is_not_an_empty_folder(server: FaultyS3, bucket: str) -> None:
    server.faults = [Fault("broken")]
    for look in (files.names, files.num_bytes, files.remove):
        with pytest.raises(StoreError, match="after 8 attempts"):
            look(bucket)
    server.faults = []
    assert files.names(bucket) == ["a.bin"]
    assert files.names(f"{bucket}/nothing") == []
    assert files.num_bytes(f"{bucket}/nothing") == 0
    files.remove(f"{bucket}/nothing")


class ArrowDisk(ArrowFSWrapper):
    """Like the client of `hdfs://`, on this disk: it writes directly to the given path."""

    protocol = "arrowdisk"

    def __init__(self, **how: object) -> None:
        super().__init__(pafs.LocalFileSystem(), **how)


def test_writes_are_atomic_on_other_remote_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("arrowdisk", ArrowDisk, clobber=True)
    uri = f"arrowdisk://{tmp_path}/below/manifest.json"
    files.write(uri, b"before")
    files.write(uri, b"after")
    assert files.read(uri) == b"after"

    def full(self: ArrowFile, data: bytes) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(retry, "PAUSE_UNIT", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(ArrowFile, "write", full, raising=False)
        for other in (uri, f"arrowdisk://{tmp_path}/below/new.json"):
            with pytest.raises(StoreError, match="quota exceeded"):
                files.write(other, b"more")
    (tmp_path / "here").write_bytes(BODY)
    files.put_file(str(tmp_path / "here"), uri)
    assert files.read(uri) == BODY
    assert [file.name for file in (tmp_path / "below").iterdir()] == ["manifest.json"]


def test_a_write_to_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_bytes(BODY)
    monkeypatch.setattr(files.shutil, "copyfile", full)
    with pytest.raises(StoreError, match="No space left"):
        files.put_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_data_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, sync, rename = list[tuple[str, int, int]](), os.fsync, os.replace

    def synced(number: int) -> None:
        sync(number)
        done.append(("synced", os.fstat(number).st_ino, os.fstat(number).st_size))

    def renamed(temporary: str, path: str) -> None:
        done.append(("renamed", os.stat(temporary).st_ino, len(BODY)))
        rename(temporary, path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    files.write(str(tmp_path / "a"), BODY)
    files.put_file(str(tmp_path / "a"), str(tmp_path / "b"))
    inodes = [(tmp_path / name).stat().st_ino for name in "ab"]
    assert done == [(how, inode, len(BODY)) for inode in inodes for how in ("synced", "renamed")]


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_shard_is_copied_to_the_cache_once(
    kind: str, server: FaultyS3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = make_pairs(12)
    local = (
        write_tars(tmp_path / "pool", pairs, num_shards=2)
        if kind == "webdataset"
        else write_parquet_images(tmp_path / "pool", pairs, num_shards=2)
    )
    files.copy(local, f"{bucket}/pool")
    folder = tmp_path / "cache"
    settings = {"format": kind, "uri": f"{bucket}/pool", "cache": str(folder)}
    config = config_of(settings, tmp_path).source
    source = with_cache(open_source(config), config)
    assert source.identity() == source_of(f"{bucket}/pool", tmp_path, kind).identity(), "the same pool"
    parts = source.parts()
    tables = [source.catalog(part).table for part in parts]
    assert not folder.exists(), "nothing is copied for the catalog"

    def read() -> list[bytes | None]:
        return [image for part, table in zip(parts, tables, strict=True) for image in source.images(part, table)]

    # without free space, or while another process makes the copy, shards are read over the network
    with monkeypatch.context() as patched:
        patched.setattr(cache, "LEFT_FREE", 1.0)
        expected = read()
    assert expected == [pair.image for pair in pairs]
    assert not any(folder.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_copied", lambda shard, path: False)
        assert read() == expected
    assert read() == expected
    assert len(list(folder.iterdir())) == 2
    renamed = [copy.rename(copy.with_suffix(".away")) for copy in folder.iterdir()]
    with monkeypatch.context() as patched:
        patched.setattr(cache, "local_copy", lambda shard, folder: f"{folder}/cleared-{shard.name}")
        assert read() == expected, "the copy may be removed before it is opened"
    for copy in renamed:
        copy.rename(str(copy).removesuffix(".away") + Path(parts[0].shard.name).suffix)
    files.remove(f"{bucket}/pool")
    assert read() == expected, "from the copies alone"


def test_an_unfinished_copy_is_replaced_only_when_it_is_old(bucket: str, tmp_path: Path) -> None:
    shard = Shard(uri=f"{bucket}/a.bin", name="a.bin", num_bytes=len(BODY), version="1")
    copy = cache.local_copy(shard, str(tmp_path))
    assert copy is not None
    assert Path(copy).read_bytes() == BODY
    changed = replace(shard, version="2")
    partial = Path(copy).with_name(Path(cache.local_copy(changed, str(tmp_path)) or "").name + ".part")
    Path(str(partial).removesuffix(".part")).unlink()
    partial.touch()
    assert cache.local_copy(changed, str(tmp_path)) is None
    os.utime(partial, (0, 0))
    unfinished = Path(str(partial).replace(".part", ".1a2b3c4d.tmp"))
    unfinished.touch()
    assert cache.local_copy(changed, str(tmp_path)) is None, "another process is still writing"
    os.utime(unfinished, (0, 0))
    assert cache.local_copy(changed, str(tmp_path)) == str(partial).removesuffix(".part")
    assert not partial.exists()
    assert not unfinished.exists()


def test_a_short_copy_is_replaced(bucket: str, tmp_path: Path) -> None:
    shard = Shard(uri=f"{bucket}/a.bin", name="a.bin", num_bytes=len(BODY), version="1")
    copy = Path(cache.local_copy(shard, str(tmp_path)) or "")
    for left in (0, 1000):
        os.truncate(copy, left)
        assert cache.local_copy(shard, str(tmp_path)) == str(copy)
        assert copy.read_bytes() == BODY
    with pytest.raises(StoreError, match=r"a\.bin: got 102,400 bytes, expected 7 as listed; the shard changed"):
        cache.local_copy(replace(shard, num_bytes=7), str(tmp_path))
    assert list(tmp_path.iterdir()) == [copy]
    assert cache.local_copy(replace(shard, num_bytes=0), str(tmp_path)), "a web server may not send the size"
