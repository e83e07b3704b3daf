"""A shuffle through the store: rows grouped by source become rows grouped by destination, in two stages of parts.

Each source writes one file with one table per destination. Each destination then reads its slice of every file with a
range request. A file begins with `num_destinations + 1` byte offsets (int64, little-endian); the tables follow as Arrow
IPC streams, without gaps. A destination that gets no rows has an empty slice. So there is one file per source, not one
per source and destination. A writing task holds the data of one source in memory, a reading task the data of one
destination; the driver holds none."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.engine.artifact_files import checked
from orchestrator.storage import files

IN_FLIGHT = 8
"""Slices that are read ahead, because a request to an object store takes tens of milliseconds."""

MAX_BYTES = 1 << 44
"""No file is longer: a larger offset is no offset."""

OFFSET = np.dtype("<i8")
Vectors = NDArray[np.float16]


def split(table: pa.Table, destination: NDArray[np.integer], num_destinations: int) -> list[pa.Table]:
    """Split a table into one table per destination; rows keep their order.

    `destination`: int [rows], in [0, num_destinations)."""
    assert len(destination) == table.num_rows, f"{len(destination)} destinations for {table.num_rows} rows"
    order = np.argsort(destination, kind="stable")
    bounds = np.searchsorted(destination[order], np.arange(num_destinations + 1))
    assert bounds[0] == 0, "a destination is negative"
    assert bounds[-1] == len(order), f"a destination is not below {num_destinations}"
    ordered = table.take(pa.array(order)).combine_chunks()
    return [ordered.slice(start, stop - start) for start, stop in pairwise(bounds)]


def pack(tables: Sequence[pa.Table]) -> bytes:
    """Return the bytes of a source's file, from one table per destination, in order."""
    slices = [_stream(table) for table in tables]
    sizes = [len(data) for data in slices]
    first = OFFSET.itemsize * (len(tables) + 1)
    offsets = first + np.concatenate([[0], np.cumsum(sizes)])
    return b"".join([offsets.astype(OFFSET).tobytes(), *slices])


def read_slice(uri: str, destination: int) -> pa.Table | None:
    """Return the table of a destination in a source's file; None if it has no rows. Errors: `StoreError`."""
    with checked(uri):
        (bounds,) = files.read_spans(uri, [(OFFSET.itemsize * destination, 2 * OFFSET.itemsize)])
        start, end = np.frombuffer(bounds, OFFSET).tolist()
        if not 0 < start <= end < MAX_BYTES:
            raise ValueError("it does not begin with the offsets of its tables")
        if start == end:
            return None
        (data,) = files.read_spans(uri, [(start, end - start)])
        if len(data) != end - start:
            raise ValueError(f"got {len(data):,} of {end - start:,} bytes at {start:,}")
        return pa.ipc.open_stream(data).read_all()


def gather(uris: Sequence[str], destination: int) -> Iterator[pa.Table]:
    """Yield the tables of a destination from all sources, in the order of `uris`, without empty ones."""
    waiting: deque[Future[pa.Table | None]] = deque()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for uri in uris:
            waiting.append(pool.submit(read_slice, uri, destination))
            if len(waiting) == IN_FLIGHT:
                yield from _if_any(waiting.popleft())
        while waiting:
            yield from _if_any(waiting.popleft())


def read_slices(uri: str) -> Iterator[pa.Table]:
    """Yield all tables of a source's file, by destination, without empty ones. Errors: `StoreError`."""
    with checked(uri):
        data = memoryview(files.read(uri))
        # the first table begins where the offsets end
        first = np.frombuffer(data, OFFSET, count=1)[0]
        offsets = np.frombuffer(data[:first], OFFSET).tolist()
        if len(data) != offsets[-1]:
            raise ValueError(f"got {len(data):,} bytes, expected {offsets[-1]:,}")
    for start, end in pairwise(offsets):
        if start < end:
            with checked(uri):
                table = pa.ipc.open_stream(data[start:end]).read_all()
            yield table


def vectors_to_column(vectors: Vectors) -> pa.Array:
    """Return vectors, float16 [n, dim] and contiguous, as a column of n values of 2 * dim bytes, without a copy."""
    assert vectors.dtype == np.float16, f"got {vectors.dtype}"
    assert vectors.flags.c_contiguous, "the vectors are not contiguous"
    num_rows, dim = vectors.shape
    kind = pa.binary(dim * vectors.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, num_rows, [None, pa.py_buffer(vectors)])


def column_to_vectors(column: pa.Array | pa.ChunkedArray) -> Vectors:
    """Return the vectors, float16 [n, dim], of a column made by `vectors_to_column`. Only several chunks are copied."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    dim = column.type.byte_width // 2
    flat = np.frombuffer(values.buffers()[1] or b"", np.float16)
    return flat[values.offset * dim : (values.offset + len(values)) * dim].reshape(len(values), dim)


def _stream(table: pa.Table) -> pa.Buffer | bytes:
    if not table.num_rows:
        return b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _if_any(found: Future[pa.Table | None]) -> Iterator[pa.Table]:
    table = found.result()
    if table is not None:
        yield table
