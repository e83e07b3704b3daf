"""Read the files of artifacts. A file that is missing, empty, cut or of another format is one line that names it.

Stages write every file whole, so only something outside the project can damage one. The line says what to remove: the
folder of the artifact, which the run then makes again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.errors import UserError, first_line
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.storage.npy import NpyRows, from_npy, open_npy

# what NumPy, Arrow and the JSON reader raise for bytes that they cannot read
UNREADABLE = (UserError, ValueError, TypeError, KeyError, IndexError, EOFError, OSError, pa.ArrowException)


def damaged(uri: str, reason: str, *, remedy: str | None = None) -> StoreError:
    """Return the error for a damaged file; `remedy` replaces the advice to remove the artifact's folder."""
    folder = uri.rsplit("/", 1)[0].removesuffix("/parts")
    what_to_do = remedy or f"remove the folder {folder} and repeat the run that made it"
    return StoreError(f"{uri} is damaged ({reason}); {what_to_do}")


@contextmanager
def checked(uri: str, *, remedy: str | None = None) -> Iterator[None]:
    """Turn errors of reading the file at `uri` into that of `damaged`. Errors of the storage pass unchanged."""
    try:
        yield
    except UNREADABLE as error:
        if isinstance(error, FileNotFoundError):
            raise damaged(uri, "no such file", remedy=remedy) from error
        # an error of the system has a number; Arrow raises `OSError` without one for bytes that it cannot read
        if isinstance(error, StoreError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise damaged(uri, first_line(error), remedy=remedy) from error


def read_json(uri: str, *, remedy: str | None = None) -> Any:
    """Return the value in a JSON file. Errors: `StoreError`."""
    with checked(uri, remedy=remedy):
        return files.read_json(uri)


def read_json_lines(uri: str) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, at least one. Errors: `StoreError`."""
    with checked(uri):
        records = [json.loads(line) for line in files.read(uri).splitlines()]
        if not records:
            raise ValueError("it has no lines")
        return records


def read_npy(uri: str) -> NDArray[Any]:
    """Return the array in an .npy file. Errors: `StoreError`."""
    with checked(uri):
        return from_npy(files.read(uri))


def open_rows(uri: str) -> NpyRows:
    """Return the array in an .npy file; its rows are read later. Errors: `StoreError`."""
    with checked(uri):
        rows = open_npy(uri)
        with files.open_file(uri) as file:
            num_bytes = file.seek(0, 2)
        if num_bytes != rows.num_bytes:
            raise ValueError(f"got {num_bytes:,} bytes, expected {rows.num_bytes:,}")
        return rows


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file's table, or the named columns of it. Errors: `StoreError`."""
    with checked(uri):
        # a local file is opened, because only the named columns are read; a remote one takes one request
        file = files.open_file(uri) if files.is_local(uri) else pa.BufferReader(files.read(uri))
        with file:
            return pq.read_table(file, columns=None if columns is None else list(columns))
