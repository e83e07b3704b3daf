"""Many small reads of one file; in a remote file, neighbours share a request.

Two members with at most `MAX_GAP` bytes between them are one request: at about 100 MB/s a gap of 64 KiB costs less than
a millisecond, and a request to an object store tens of milliseconds. A request has at most `MAX_REQUEST` bytes (or one
member), and only a few are in flight, which bounds memory. A local file is opened once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.storage import files
from orchestrator.storage.files import StoreError

MAX_GAP = 64 << 10
MAX_REQUEST = 8 << 20

Span = tuple[int, int]


def read_spans(uri: str, spans: Sequence[Span]) -> Iterator[bytes]:
    """Yield the bytes of each (offset, size) of a file, in the given order.

    Errors: `StoreError`, also if the file is shorter than a span: it changed since the catalog was made."""
    read = files.read_spans if files.is_local(uri) else _in_runs
    # HTTP cannot request an empty range: some servers answer with the whole file
    found = read(uri, [span for span in spans if span[1]])
    for offset, size in spans:
        data = next(found) if size else b""
        if len(data) != size:
            raise StoreError(f"{uri}: got {len(data)} of {size} bytes at {offset}; the shard changed since it was read")
        yield data


def coalesce(spans: Sequence[Span]) -> list[list[Span]]:
    """Return the spans in runs, in order; each run is one request."""
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


def _in_runs(uri: str, spans: Sequence[Span]) -> Iterator[bytes]:
    runs = coalesce(spans)
    whole = [(run[0][0], sum(run[-1]) - run[0][0]) for run in runs]
    for run, data in zip(runs, files.read_spans(uri, whole), strict=True):
        start = run[0][0]
        for offset, size in run:
            yield data[offset - start : offset - start + size]
