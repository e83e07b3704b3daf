"""Files at any URI that fsspec knows (local, s3://, gs://, ...), written whole or not at all.

A local file is written under a temporary name and renamed; an object store's single put is already atomic."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from orchestrator.errors import UserError


class StoreError(UserError, OSError):
    """A place that cannot be read or written: the message is one line, meant for the user."""


def absolute(uri: str | os.PathLike[str]) -> str:
    """The URI with a local path made absolute, so that workers in other folders mean the same place."""
    text = os.fspath(uri)
    if "://" in text and not text.startswith("file://"):
        return text
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


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
    return fs.exists(path)


def read(uri: str) -> bytes:
    """A whole file."""
    fs, path = filesystem(uri)
    return fs.cat_file(path)


def read_json(uri: str) -> Any:
    """A whole JSON file."""
    return json.loads(read(uri))


def write(uri: str, data: bytes) -> None:
    """Writes a whole file; a reader sees all of it or the one before.

    Errors: `StoreError` when the place is full, read-only or not allowed; what was there before is untouched."""
    fs, path = filesystem(uri)
    try:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        _write_local(path, data)
    except OSError as error:
        raise StoreError(
            f"cannot write {uri}: {error.strerror or error}; expected a writable place with room (set out= and store=)"
        ) from error


def _write_local(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def write_json(uri: str, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    write(uri, json.dumps(value, indent=1, sort_keys=True, default=str).encode())


def names(uri: str) -> list[str]:
    """The names directly below a folder, sorted; none when it does not exist."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    return sorted(os.path.basename(entry.rstrip("/")) for entry in fs.ls(path, detail=False))


def copy(from_uri: str, to_uri: str) -> None:
    """Copies a file, or a folder with all below it, between any two places."""
    fs, path = filesystem(from_uri)
    for entry in fs.find(path):
        tail = entry[len(path.rstrip("/")) :].lstrip("/")
        write(join(to_uri, tail) if tail else to_uri, fs.cat_file(entry))


def is_path(text: str) -> bool:
    """Whether the text names something on this machine's disk."""
    return os.path.exists(os.path.expanduser(text))


def put_file(path: str, uri: str) -> None:
    """Moves a local file to a place, whole or not at all, without holding it in memory."""
    fs, target = filesystem(uri)
    try:
        if isinstance(fs, LocalFileSystem):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
            shutil.copyfile(path, temporary)
            os.replace(temporary, target)
        else:
            fs.put_file(path, target)
    except OSError as error:
        raise StoreError(
            f"cannot write {uri}: {error.strerror or error}; expected a writable place with room"
        ) from error


def remove(uri: str) -> None:
    """Removes a file or folder of ours."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)
