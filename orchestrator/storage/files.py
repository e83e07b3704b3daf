"""Files at any URI that fsspec knows (local, s3://, gs://, ...); a write is whole or absent.

A put into an object store is atomic. On disks, HDFS and SFTP a file is written under a temporary name and then renamed.
Requests over a network are retried (`storage.retry`)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Any, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from orchestrator.storage.retry import READ_AHEAD, CutOff, RemoteFile, StoreError, read_ranges, tried

PARALLEL = 4
COPY_BYTES = 8 << 20
# the ending of files that are not complete
TEMPORARY = ".tmp"
# fsspec's names of S3, Google Cloud Storage and Azure
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}


def absolute(uri: str | os.PathLike[str]) -> str:
    """Return the URI; a local path is made absolute, so it means the same in workers with other working folders."""
    text = os.fspath(uri)
    if "://" in text and not text.startswith("file://"):
        return text
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def canonical(uri: str) -> str:
    """Return one spelling of a URI, for comparisons: absolute, without links, the protocol by its first name."""
    fs, path = filesystem(absolute(uri))
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path.rstrip("/")))


def join(uri: str, *names: str) -> str:
    """Return the URI of a path below a URI."""
    return "/".join([uri.rstrip("/"), *names])


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI and the path in it."""
    return url_to_fs(uri)


def is_local(uri: str) -> bool:
    """Return whether the URI is on this machine's disk."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    fs, path = filesystem(uri)
    if is_local(uri):
        return fs.exists(path)
    try:
        # `fs.exists` would answer False for every failure
        tried(lambda: fs.info(path), uri)
    except FileNotFoundError:
        return False
    return True


def read(uri: str) -> bytes:
    """Return the content of a file."""
    fs, path = filesystem(uri)
    return fs.cat_file(path) if is_local(uri) else tried(lambda: fs.cat_file(path), uri)


def read_spans(uri: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes of each (offset, size) of a file, in the given order; `PARALLEL` remote reads run at once.

    Bytes beyond the end of a local file are left out; in a remote file they are an error. Errors: `OSError`."""
    fs, path = filesystem(uri)
    if is_local(uri):
        with open(path, "rb") as file:
            for offset, size in spans:
                file.seek(offset)
                yield file.read(size)
        return
    for first in range(0, len(spans), PARALLEL):
        yield from read_ranges(fs, path, [(offset, offset + size) for offset, size in spans[first : first + PARALLEL]])


def open_file(uri: str, *, read_ahead: int = READ_AHEAD) -> IO[bytes]:
    """Open a file that can be read in any order; `read_ahead`: the bytes of one remote request."""
    fs, path = filesystem(uri)
    return open(path, "rb") if is_local(uri) else cast(IO[bytes], RemoteFile(fs, path, read_ahead=read_ahead))


def read_json(uri: str) -> Any:
    """Return the value in a JSON file."""
    return json.loads(read(uri))


def write(uri: str, data: bytes) -> None:
    """Write a file; a reader sees the whole new content or the old one.

    Errors: `StoreError` if the store is full, read-only or not allowed; an old file then stays as it was."""
    fs, _ = filesystem(uri)

    def put(path: str) -> None:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        with open(path, "wb") as file:
            file.write(data)

    _put(uri, put)


def _put(uri: str, put: Callable[[str], None]) -> None:
    # `put` writes to a path in the URI's file system
    fs, path = filesystem(uri)
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    try:
        if isinstance(fs, LocalFileSystem):
            _put_here(path, put)
        elif protocols & OBJECT_STORES:
            tried(lambda: put(path), uri, doing="write")
        else:
            tried(lambda: _put_renamed(fs, path, put), uri, doing="write")
    except StoreError:
        raise
    except OSError as error:
        raise unwritable(uri, error) from error


def unwritable(uri: str, error: OSError, *, doing: str = "write") -> StoreError:
    """Return the error for a URI that cannot be written or removed, with its reason."""
    expected = "a writable folder or bucket with free space (set out= and store=)"
    if isinstance(error, PermissionError):
        expected = (
            "a folder that this user may write (set out= and store=); a store shared by users belongs to a group of "
            "theirs (chgrp -R, chmod -R g+rwXs), and each of them sets umask 002"
        )
    return StoreError(f"cannot {doing} {uri}: {error.strerror or error}; expected {expected}")


def _put_here(path: str, put: Callable[[str], None]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _temporary(path)
    try:
        put(temporary)
        settle(temporary, path)
    except OSError:
        with suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def settle(temporary: str, path: str) -> None:
    """Rename a local file once its bytes are on the disk. Errors: `OSError`.

    Without the sync, a power loss could leave the name and lose the bytes, because a journal orders names only: a
    summary would mark an empty file as complete."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _put_renamed(fs: fsspec.AbstractFileSystem, path: str, put: Callable[[str], None]) -> None:
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _temporary(path)
    try:
        put(temporary)
        try:
            fs.mv(temporary, path)
        except OSError:
            if not fs.exists(path):
                raise
        # HDFS does not rename onto an existing file, with an error or without
        if fs.exists(temporary):
            fs.rm_file(path)
            fs.mv(temporary, path)
    except OSError:
        with suppress(OSError):
            fs.rm_file(temporary)
        raise


def _temporary(path: str) -> str:
    return f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY}"


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON; see `write`."""
    write(uri, json.dumps(value, indent=1, sort_keys=True, default=str).encode())


def names(uri: str) -> list[str]:
    """Return the names directly below a folder, sorted; an empty list if it does not exist."""
    fs, path = filesystem(uri)

    def listed() -> list[str]:
        fs.invalidate_cache()
        return fs.ls(path, detail=False)

    try:
        # no check for existence: on some file systems it answers False for every failure
        found = listed() if is_local(uri) else tried(listed, uri)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(os.path.basename(entry.rstrip("/")) for entry in found)


def num_bytes(uri: str) -> int:
    """Return the size of a file, or of all files below a folder, in bytes; 0 if there is none."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if not exists(uri):
        return 0
    return int(fs.du(path) if is_local(uri) else tried(lambda: fs.du(path), uri))


def copy(from_uri: str, to_uri: str) -> None:
    """Copy a file, or a folder with everything below it, between any two URIs; no file is held in memory."""
    fs, path = filesystem(from_uri)
    # some writers mark a folder in an object store with an empty object of which the name ends in a slash
    found = fs.find(path) if is_local(from_uri) else tried(lambda: fs.find(path), from_uri)
    for entry in [name for name in found if not name.endswith("/")]:
        tail = entry[len(path.rstrip("/")) :].lstrip("/")
        _copy_file(join(from_uri, tail) if tail else from_uri, join(to_uri, tail) if tail else to_uri)


def _copy_file(from_uri: str, to_uri: str) -> None:
    if is_local(from_uri):
        put_file(filesystem(from_uri)[1], to_uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "copy")
        get_file(from_uri, path)
        put_file(path, to_uri)


def is_path(text: str) -> bool:
    """Return whether the text is the path of an existing local file or folder."""
    return os.path.exists(os.path.expanduser(text))


def put_file(path: str, uri: str) -> None:
    """Copy a local file to a URI; see `write`. The file is not held in memory."""
    fs, _ = filesystem(uri)
    _put(uri, partial(shutil.copyfile if isinstance(fs, LocalFileSystem) else fs.put_file, path))


def get_file(uri: str, path: str) -> None:
    """Copy a file to a local path; it is not held in memory. Errors: `StoreError`; `CutOff` if it is shorter than its
    size in the store."""
    with open_file(uri) as remote, open(path, "wb") as file:
        expected = remote.seek(0, os.SEEK_END)
        remote.seek(0)
        shutil.copyfileobj(remote, file, COPY_BYTES)
    if os.path.getsize(path) != expected:
        raise CutOff(f"cannot copy {uri}: got {os.path.getsize(path):,} of {expected:,} bytes")


def remove(uri: str) -> None:
    """Remove a file or folder, if it exists. Errors: `StoreError` if that is not allowed."""
    fs, path = filesystem(uri)
    if not exists(uri):
        return
    # an earlier try that was reported as failed, or another process, may have removed it
    with suppress(FileNotFoundError):
        if not is_local(uri):
            tried(lambda: fs.rm(path, recursive=True), uri, doing="remove")
            return
        try:
            fs.rm(path, recursive=True)
        except PermissionError as error:
            raise unwritable(uri, error, doing="remove") from error
