"""Files at any URI that fsspec knows (local, s3://, gs://, ...), written whole or not at all.

An object store's single put is atomic already; elsewhere (disks, HDFS, SFTP) a file is written under a temporary name
and renamed. What goes over a network is tried again (`remote`)."""

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
# how the names of files end that are not whole yet
TEMPORARY = ".tmp"
# of S3, Google Cloud Storage and Azure, by fsspec's names
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}


def absolute(uri: str | os.PathLike[str]) -> str:
    """The URI with a local path made absolute, so that workers in other folders mean the same place."""
    text = os.fspath(uri)
    if "://" in text and not text.startswith("file://"):
        return text
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def canonical(uri: str) -> str:
    """One spelling of a place, to be compared: absolute, links followed, the protocol by its first name."""
    fs, path = filesystem(absolute(uri))
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path.rstrip("/")))


def join(uri: str, *names: str) -> str:
    """A path below a URI."""
    return "/".join([uri.rstrip("/"), *names])


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path inside it."""
    return url_to_fs(uri)


def is_local(uri: str) -> bool:
    """Whether the URI lies on this machine's disk."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    if is_local(uri):
        return fs.exists(path)
    try:
        # not `exists`, which takes whatever fails for a no
        tried(lambda: fs.info(path), uri)
    except FileNotFoundError:
        return False
    return True


def read(uri: str) -> bytes:
    """A whole file."""
    fs, path = filesystem(uri)
    return fs.cat_file(path) if is_local(uri) else tried(lambda: fs.cat_file(path), uri)


def read_spans(uri: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of each (offset, size) of a file, in the order given; of a remote one `PARALLEL` are in flight at once.

    What lies beyond the end of a local file is missing; of a remote one that is an error. Errors: `OSError`."""
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
    """A file to be read in any order; `read_ahead`: the bytes that a request to a remote place asks for."""
    fs, path = filesystem(uri)
    return open(path, "rb") if is_local(uri) else cast(IO[bytes], RemoteFile(fs, path, read_ahead=read_ahead))


def read_json(uri: str) -> Any:
    """A whole JSON file."""
    return json.loads(read(uri))


def write(uri: str, data: bytes) -> None:
    """Writes a whole file; a reader sees all of it or the one before.

    Errors: `StoreError` when the place is full, read-only or not allowed; what was there before is untouched."""
    fs, _ = filesystem(uri)

    def put(path: str) -> None:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        with open(path, "wb") as file:
            file.write(data)

    _put(uri, put)


def _put(uri: str, put: Callable[[str], None]) -> None:
    # `put` writes to a path of the URI's file system
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
    """What to tell of a place where nothing can be written or removed, and why."""
    expected = "a writable place with room (set out= and store=)"
    if isinstance(error, PermissionError):
        expected = (
            "a place that this user may write (set out= and store=); a store that users share is a folder of a group "
            "of theirs (chgrp -R, chmod -R g+rwXs), and each of them has umask 002"
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
    """Gives a local file its name once its bytes are on the disk. Errors: `OSError`.

    A journal keeps names in their order, but not what the files hold: after a power loss a mark would be there, and
    what it stands for empty."""
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
        # HDFS does not rename onto what is there, with an error or without
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
    """Writes a value as JSON, whole or not at all."""
    write(uri, json.dumps(value, indent=1, sort_keys=True, default=str).encode())


def names(uri: str) -> list[str]:
    """The names directly below a folder, sorted; none when it does not exist."""
    fs, path = filesystem(uri)

    def listed() -> list[str]:
        fs.invalidate_cache()
        return fs.ls(path, detail=False)

    try:
        # no look at whether it exists, which on some file systems takes whatever fails for a no
        found = listed() if is_local(uri) else tried(listed, uri)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(os.path.basename(entry.rstrip("/")) for entry in found)


def num_bytes(uri: str) -> int:
    """The bytes of a file, or of all files below a folder; 0 where there is none."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if not exists(uri):
        return 0
    return int(fs.du(path) if is_local(uri) else tried(lambda: fs.du(path), uri))


def copy(from_uri: str, to_uri: str) -> None:
    """Copies a file, or a folder with all below it, between any two places, holding none of it in memory."""
    fs, path = filesystem(from_uri)
    # some writers mark a folder of an object store by an empty object whose name ends as a folder's does
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
    """Whether the text names something on this machine's disk."""
    return os.path.exists(os.path.expanduser(text))


def put_file(path: str, uri: str) -> None:
    """Copies a local file to a place, whole or not at all, without holding it in memory. Errors: as `write`."""
    fs, _ = filesystem(uri)
    _put(uri, partial(shutil.copyfile if isinstance(fs, LocalFileSystem) else fs.put_file, path))


def get_file(uri: str, path: str) -> None:
    """Copies a file to a local path, without holding it in memory. Errors: `StoreError`; `CutOff` where it is shorter
    than the place says it is."""
    with open_file(uri) as remote, open(path, "wb") as file:
        expected = remote.seek(0, os.SEEK_END)
        remote.seek(0)
        shutil.copyfileobj(remote, file, COPY_BYTES)
    if os.path.getsize(path) != expected:
        raise CutOff(f"cannot copy {uri}: got {os.path.getsize(path):,} of {expected:,} bytes")


def remove(uri: str) -> None:
    """Removes a file or folder of ours. Errors: `StoreError` where that is not allowed."""
    fs, path = filesystem(uri)
    if not exists(uri):
        return
    # a try that failed after the fact, or another process, has removed it
    with suppress(FileNotFoundError):
        if not is_local(uri):
            tried(lambda: fs.rm(path, recursive=True), uri, doing="remove")
            return
        try:
            fs.rm(path, recursive=True)
        except PermissionError as error:
            raise unwritable(uri, error, doing="remove") from error
