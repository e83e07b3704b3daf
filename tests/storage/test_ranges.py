"""Byte ranges: combine near spans into one request, and read spans."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest

from orchestrator.storage import retry
from orchestrator.storage.ranges import MAX_GAP, MAX_REQUEST, coalesce, read_spans


def test_coalesced_requests_hold_every_span_and_no_large_gap() -> None:
    rng = np.random.default_rng(0)
    offsets = np.cumsum(rng.integers(1, 3 * MAX_GAP, 2000))
    spans = [(int(offset), int(rng.integers(1, 1 << 20))) for offset in offsets] + [(0, 2 * MAX_REQUEST)]
    runs = coalesce(spans)
    assert [span for run in runs for span in run] == spans
    for run in runs:
        assert len(run) == 1 or sum(run[-1]) - run[0][0] <= MAX_REQUEST
        for (offset, size), (following, _) in pairwise(run):
            assert 0 <= following - (offset + size) <= MAX_GAP


def test_near_spans_are_one_request() -> None:
    near, far = [(0, 10), (10 + MAX_GAP, 10)], (MAX_GAP * 3, 5)
    assert coalesce([*near, far]) == [near, [far]]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_spans_in_any_order_give_the_bytes_of_the_file(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "MAX_ATTEMPTS", 2)
    data = os.urandom(1 << 20)
    uri = str(tmp_path / "file") if where == "local" else "memory://ranges/file"
    fsspec.filesystem("file" if where == "local" else "memory").pipe_file(uri, data)
    spans = [(3, 0), (5, 100), (200, 0), (300, 70_000), (900_000, 5), (0, 1 << 20), (7, 7), (400_000, 1)]
    assert list(read_spans(uri, spans)) == [data[offset : offset + size] for offset, size in spans]
    with pytest.raises(OSError, match="changed since"):
        list(read_spans(uri, [(0, 10), ((1 << 20) - 5, 10)]))
