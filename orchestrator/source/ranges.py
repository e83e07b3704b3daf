"""Many small reads of one file: neighbours are fetched together where the file is remote.

Two members with at most `MAX_GAP` bytes between them are one request: at some 100 MB/s a gap of 64 KiB costs less than
a millisecond, a request to an object store tens of them. A request holds at most `MAX_REQUEST` bytes (or one member),
and `PARALLEL` of them are in flight at once, which bounds memory. A local file is opened once and sought."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fsspec import AbstractFileSystem

from orchestrator.store import filesystem, is_local

MAX_GAP = 64 << 10
MAX_REQUEST = 8 << 20
PARALLEL = 4

Span = tuple[int, int]


def read_spans(uri: str, spans: Sequence[Span]) -> Iterator[bytes]:
    """The bytes of each (offset, size) of a file, in the order given.

    Errors: `OSError`; also when the file is shorter than a span, as it then changed since it was catalogued."""
    fs, path = filesystem(uri)
    read = _read_local if is_local(uri) else _read_remote
    # an empty range is not a request that HTTP can express: some servers answer with the whole file
    found = read(fs, path, [span for span in spans if span[1]])
    for offset, size in spans:
        data = next(found) if size else b""
        if len(data) != size:
            raise OSError(f"{uri}: got {len(data)} of {size} bytes at {offset}; the shard changed since it was read")
        yield data


def coalesce(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans, in order, in runs that are fetched by one request each."""
    runs: list[list[Span]] = []
    for offset, size in spans:
        if runs:
            start, (last, last_size) = runs[-1][0][0], runs[-1][-1]
            end = last + last_size
            if end <= offset <= end + MAX_GAP and offset + size - start <= MAX_REQUEST:
                runs[-1].append((offset, size))
                continue
        runs.append([(offset, size)])
    return runs


def _read_local(fs: AbstractFileSystem, path: str, spans: Sequence[Span]) -> Iterator[bytes]:
    with fs.open(path, "rb") as file:
        for offset, size in spans:
            file.seek(offset)
            yield file.read(size)


def _read_remote(fs: AbstractFileSystem, path: str, spans: Sequence[Span]) -> Iterator[bytes]:
    runs = coalesce(spans)
    for first in range(0, len(runs), PARALLEL):
        group = runs[first : first + PARALLEL]
        starts = [run[0][0] for run in group]
        ends = [sum(run[-1]) for run in group]
        for run, data in zip(group, fs.cat_ranges([path] * len(group), starts, ends, on_error="raise"), strict=True):
            start = run[0][0]
            for offset, size in run:
                yield data[offset - start : offset - start + size]
