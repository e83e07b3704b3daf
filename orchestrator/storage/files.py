"""Files at any URI that fsspec supports (local, s3://, gs://, ...), with atomic writes.

A single put to an object store is atomic. On other file systems (disks, HDFS, SFTP), a file is written under a
temporary name and then renamed. Requests over a network are retried (`retry`)."""

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

from orchestrator.errors import UserError, first_line
from orchestrator.storage import hub
from orchestrator.storage.retry import READ_AHEAD, CutOff, RemoteFile, StoreError, read_ranges, tried

# requests in flight at once for one file
PARALLEL = 4
COPY_BYTES = 8 << 20
# the ending of the names of incomplete files
TEMPORARY = ".tmp"
# fsspec's protocols of S3, Google Cloud Storage and Azure, where a single put is atomic
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
# the extra of this package that has a protocol's client
EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure", "hf": "hf"}


def absolute(uri: str | os.PathLike[str]) -> str:
    """Return the URI with an absolute local path, because workers run in other folders."""
    text = os.fspath(uri)
    if "://" in text and not text.startswith("file://"):
        return text
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def canonical(uri: str) -> str:
    """Return one spelling of a URI, for comparisons: absolute, links resolved, the main name of the protocol."""
    fs, path = filesystem(absolute(uri))
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path.rstrip("/")))


def join(uri: str, *names: str) -> str:
    """Return the URI of a path below a URI."""
    return "/".join([uri.rstrip("/"), *names])


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI and the path inside it. Errors: `UserError` if there is no client for it."""
    if "::" in uri and "://" not in uri:
        # fsspec would read the mark of a chained URL in the name of a local folder
        local = url_to_fs("/")[0]
        return local, local._strip_protocol(uri)
    try:
        return hub.open_hub(uri) if hub.is_hub(uri) else url_to_fs(uri)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(uri.partition("://")[0])
        hint = f"; install it with: pip install 'clip-orchestrator[{extra}]'" if extra else ""
        raise UserError(f"cannot open {uri}: {first_line(error)}{hint}") from error


def is_local(uri: str) -> bool:
    """Return whether the URI is a path on this machine."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def exists(uri: str) -> bool:
    """Return whether a file or folder exists. Errors: `StoreError` if the store does not answer."""
    fs, path = filesystem(uri)
    if is_local(uri):
        return fs.exists(path)
    try:
        # fsspec's `exists` returns False for every error, a timeout included
        tried(lambda: fs.info(path), uri)
    except FileNotFoundError:
        return False
    return True


def read(uri: str) -> bytes:
    """Return the bytes of a file."""
    fs, path = filesystem(uri)
    return fs.cat_file(path) if is_local(uri) else tried(lambda: fs.cat_file(path), uri)


def read_spans(uri: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes of each (offset, size) of a file, in the given order.

    A span beyond the end of a local file gives fewer bytes; in a remote file it is an error. Errors: `OSError`."""
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
    """Open a file for reads at any position. `read_ahead`: bytes per request to a remote file."""
    fs, path = filesystem(uri)
    return open(path, "rb") if is_local(uri) else cast(IO[bytes], RemoteFile(fs, path, read_ahead=read_ahead))


def read_json(uri: str) -> Any:
    """Return the value in a JSON file."""
    return json.loads(read(uri))


def write(uri: str, data: bytes) -> None:
    """Write a file atomically: a reader sees the new file or the old one.

    Errors: `StoreError` if the disk is full, read-only or not writable for this user; the old file is untouched."""
    fs, _ = filesystem(uri)

    def put(path: str) -> None:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        with open(path, "wb") as file:
            file.write(data)

    _put(uri, put)


def _put(uri: str, put: Callable[[str], None]) -> None:
    # `put` writes directly to a path of the URI's file system
    hub.check_writable(uri)
    fs, path = filesystem(uri)
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    try:
        if isinstance(fs, LocalFileSystem):
            _put_local(path, put)
        elif protocols & OBJECT_STORES:
            tried(lambda: put(path), uri, doing="write")
        else:
            tried(lambda: _put_renamed(fs, path, put), uri, doing="write")
    except StoreError:
        raise
    except OSError as error:
        raise unwritable(uri, error) from error


def unwritable(uri: str, error: OSError, *, doing: str = "write") -> StoreError:
    """Return the error for a URI that cannot be written or removed."""
    expected = "a writable folder or bucket with free space (set out= and store=)"
    if isinstance(error, PermissionError):
        expected = (
            "a folder or bucket that this user may write (set out= and store=); a store that several users share must "
            "belong to a common group (chgrp -R, chmod -R g+rwXs), and each user needs umask 002"
        )
    return StoreError(f"cannot {doing} {uri}: {error.strerror or error}; expected {expected}")


def _put_local(path: str, put: Callable[[str], None]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _temporary(path)
    try:
        put(temporary)
        rename_synced(temporary, path)
    except BaseException:
        # a stop request too leaves no temporary file
        with suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def rename_synced(temporary: str, path: str) -> None:
    """Rename a local file after its bytes have reached the disk. Errors: `OSError`.

    A journaling file system keeps the order of renames but not of data. Without the sync, a power loss could leave a
    manifest in place and the files that it lists empty."""
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
        # HDFS does not rename onto an existing file; depending on the client it raises an error or ignores the call
        if fs.exists(temporary):
            fs.rm_file(path)
            fs.mv(temporary, path)
    except BaseException:
        with suppress(OSError):
            fs.rm_file(temporary)
        raise


def _temporary(path: str) -> str:
    return f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY}"


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON, atomically."""
    write(uri, json.dumps(value, indent=1, sort_keys=True, default=str).encode())


def names(uri: str) -> list[str]:
    """Return the names directly below a folder, sorted; an empty list if it does not exist."""
    fs, path = filesystem(uri)

    def listed() -> list[str]:
        fs.invalidate_cache()
        return fs.ls(path, detail=False)

    try:
        # fsspec's `exists` is not asked first: on some file systems it returns False for every error
        found = listed() if is_local(uri) else tried(listed, uri)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(os.path.basename(entry.rstrip("/")) for entry in found)


def num_bytes(uri: str) -> int:
    """Return the size in bytes of a file or of all files below a folder; 0 if there is none."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if not exists(uri):
        return 0
    return int(fs.du(path) if is_local(uri) else tried(lambda: fs.du(path), uri))


def copy(from_uri: str, to_uri: str) -> None:
    """Copy a file or a folder with everything below it between any two URIs, without holding a file in memory."""
    fs, path = filesystem(from_uri)
    # some tools mark a folder of an object store with an empty object, and the name of that object ends with a slash
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
    """Return whether the text is the path of an existing file or folder on this machine."""
    return os.path.exists(os.path.expanduser(text))


def put_file(path: str, uri: str) -> None:
    """Copy a local file to a URI atomically, without holding it in memory. Errors: as `write`."""
    fs, _ = filesystem(uri)
    _put(uri, partial(shutil.copyfile if isinstance(fs, LocalFileSystem) else fs.put_file, path))


def get_file(uri: str, path: str) -> None:
    """Copy a file to a local path, without holding it in memory.

    Errors: `StoreError`; `CutOff` if fewer bytes arrive than the store announces."""
    with open_file(uri) as remote, open(path, "wb") as file:
        expected = remote.seek(0, os.SEEK_END)
        remote.seek(0)
        shutil.copyfileobj(remote, file, COPY_BYTES)
    if os.path.getsize(path) != expected:
        raise CutOff(f"cannot copy {uri}: got {os.path.getsize(path):,} of {expected:,} bytes")


def remove(uri: str) -> None:
    """Remove a file or folder, if it exists. Errors: `StoreError` if this user may not remove it."""
    hub.check_writable(uri)
    fs, path = filesystem(uri)
    if not exists(uri):
        return
    # another process may have removed it, or an earlier attempt that removed it and then lost the connection
    with suppress(FileNotFoundError):
        if not is_local(uri):
            tried(lambda: fs.rm(path, recursive=True), uri, doing="remove")
            return
        try:
            fs.rm(path, recursive=True)
        except PermissionError as error:
            raise unwritable(uri, error, doing="remove") from error
