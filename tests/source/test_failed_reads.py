"""Every reader raises the error of a failed read. It never reports the shard as damaged."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from orchestrator.config import ParquetSource, TableSource, WebDatasetSource
from orchestrator.source import open_source
from orchestrator.storage import retry
from tests.support.shard_files import pairs, picture, write_tar


class Disk:
    """A disk that fails each read beyond `good_bytes`."""

    good_bytes: int | None = None

    def check(self, end: int) -> None:
        if self.good_bytes is not None and end > self.good_bytes:
            raise OSError(errno.EIO, "the disk failed")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The memory file system, made to read from a disk that can fail."""
    # short waits: a failed disk fails at each retry
    monkeypatch.setattr(retry, "PAUSE_UNIT", 0.001)
    disk, fs = Disk(), MemoryFileSystem
    cat_file, read, opened = fs.cat_file, MemoryFile.read, fs._open

    def checked_read(self: MemoryFile, size: int = -1) -> bytes:
        disk.check(self.tell() + max(size, 0))
        return read(self, size)

    def checked_cat(self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        disk.check(end or 0)
        return cat_file(self, path, start, end, **options)

    # the memory file system gives all readers the same file object; give each reader its own, as a disk does
    def own_file(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        file = opened(self, path, mode, **options)
        return MemoryFile(self, path, file.getvalue()) if mode == "rb" else file

    monkeypatch.setattr(MemoryFile, "read", checked_read)
    monkeypatch.setattr(fs, "cat_file", checked_cat)
    monkeypatch.setattr(fs, "_open", own_file)
    yield disk
    disk.good_bytes = None
    fsspec.filesystem("memory").rm("/flaky", recursive=True)


def put(name: str, data: bytes) -> str:
    fsspec.filesystem("memory").pipe_file(f"/flaky/{name}", data)
    return f"memory://flaky/{name}"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("good_bytes", [0, 3000, 9000])
def test_a_failed_read_of_a_tar_is_raised(disk: Disk, tmp_path: Path, mode: str, good_bytes: int) -> None:
    uri = put("0.tar", write_tar(tmp_path / "0.tar", pairs(9), mode).read_bytes())
    source = open_source(WebDatasetSource(uri=uri))
    (part,) = source.parts()
    table = source.catalog(part).table
    assert len([image for image in source.images(part, table) if image]) == 9
    disk.good_bytes = good_bytes
    with pytest.raises(OSError, match="the disk failed"):
        source.catalog(part)
    with pytest.raises(OSError, match="the disk failed"):
        list(source.images(part, table))


def test_a_failed_read_of_parquet_is_raised(disk: Disk, tmp_path: Path) -> None:
    rows = [{"jpg": picture(i), "key": str(i), "caption": "x"} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    uri = put("0.parquet", (tmp_path / "0.parquet").read_bytes())
    for source in (open_source(ParquetSource(uri=uri)), open_source(TableSource(uri=uri))):
        disk.good_bytes = None
        (part,) = source.parts()
        assert source.catalog(part).table.num_rows == 9
        for disk.good_bytes in (0, 100):
            with pytest.raises(OSError, match="the disk failed"):
                source.catalog(part)
            with pytest.raises(OSError, match="the disk failed"):
                source.parts()


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_failed_read_of_a_text_table_is_raised(disk: Disk, name: str) -> None:
    source = open_source(TableSource(uri=put(name, b"caption\nx\n")))
    (part,) = source.parts()
    disk.good_bytes = -1
    with pytest.raises(OSError, match="the disk failed"):
        source.catalog(part)
