"""Windows as reading tasks yield them: stretches of bounded bytes from local shards, with the same rows and order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.config import ParquetSource
from orchestrator.data.keep_list import KeepList, Mask
from orchestrator.source import Part, Source, WebDataset, open_source
from orchestrator.training import reader
from orchestrator.training.reader import ReaderInputs, block_bytes, read_window, tasks_at_once
from tests.support.pools import Pair, make_pairs, write_parquet_images, write_tars
from tests.support.reader_inputs import reader_inputs

NUM_PAIRS, SHARDS, BATCH, LANES, WINDOW = 96, 3, 8, 4, 20
WITHOUT_IMAGE = 40


class EveryThird(KeepList):
    """A keep list without every third pair."""

    def mask(self, index: int, num_rows: int) -> Mask:
        return np.arange(num_rows) % 3 != 0


class Asked:
    """A source that counts the calls to another source, and notes the bytes of each image."""

    def __init__(self, source: Source):
        self.source = source
        self.num_calls = 0
        self.num_bytes: list[int] = []

    def instead(self, inputs: ReaderInputs) -> ReaderInputs:
        """Return the inputs with this source."""
        return replace(inputs, source=self)  # type: ignore[arg-type]

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        self.num_calls += 1
        for image in self.source.images(part, rows):
            self.num_bytes.append(len(image or b""))
            yield image


def inputs_of(source: Source, folder: Path) -> ReaderInputs:
    # two epochs, so that a window crosses their border
    return reader_inputs(source, folder, EveryThird, epochs=2, batch=BATCH, lanes=LANES, window=WINDOW)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Pairs, one of them without an image."""
    pairs = make_pairs(NUM_PAIRS)
    return [replace(pair, image=None) if row == WITHOUT_IMAGE else pair for row, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def inputs(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> ReaderInputs:
    folder = tmp_path_factory.mktemp("reading")
    return inputs_of(WebDataset.open(write_tars(folder / "tars", pairs, num_shards=SHARDS)), folder / "catalog")


def windows(inputs: ReaderInputs, *, num_ranks: int = 1, first_step: int = 0) -> list[list[pa.Table]]:
    """Return the tables of every window of every rank."""
    order = inputs.order
    items = range(first_step // order.window_steps, -(-order.num_steps // order.window_steps))
    return [
        list(read_window(inputs, item, rank=rank, num_ranks=num_ranks, first_step=first_step))
        for rank in range(num_ranks)
        for item in items
    ]


@pytest.mark.parametrize(("num_ranks", "first_step"), [(1, 0), (2, 0), (4, 3)])
@pytest.mark.parametrize("limit", [1, 3_000, 9_000])
def test_stretches_together_equal_the_window(
    inputs: ReaderInputs, monkeypatch: pytest.MonkeyPatch, num_ranks: int, first_step: int, limit: int
) -> None:
    whole = windows(inputs, num_ranks=num_ranks, first_step=first_step)
    assert all(len(tables) == 1 for tables in whole)
    monkeypatch.setattr(reader, "STRETCH_BYTES", limit)
    cut = windows(inputs, num_ranks=num_ranks, first_step=first_step)
    assert [pa.concat_tables(tables).combine_chunks() for tables in cut] == [
        tables[0].combine_chunks() for tables in whole
    ]
    assert max(map(len, cut)) > 1


def test_the_rows_equal_those_of_the_pool(inputs: ReaderInputs, pairs: list[Pair]) -> None:
    ordinals = []
    for table in (table for tables in windows(inputs) for table in tables):
        for row in table.to_pylist():
            pair = pairs[row["ordinal"]]
            assert (row["key"], row["caption"], row["image"]) == (pair.key, pair.caption, pair.image)
            ordinals.append((row["epoch"], row["ordinal"]))
    kept = [row for row in range(NUM_PAIRS) if row % (NUM_PAIRS // SHARDS) % 3]
    assert sorted(ordinals) == [(epoch, row) for epoch in range(2) for row in kept]


def test_no_more_than_a_stretch_is_read_at_once(inputs: ReaderInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(inputs.source)
    monkeypatch.setattr(reader, "STRETCH_BYTES", 3_000)
    tables = 0
    for table in read_window(asked.instead(inputs), 0, rank=0, num_ranks=1, first_step=0):
        # nothing is read ahead of the yielded table
        assert 0 < sum(asked.num_bytes) <= 3_000
        assert table["image"].combine_chunks().nbytes <= 3_000 + 16 * (table.num_rows + 1)
        asked.num_bytes.clear()
        tables += 1
    assert tables > 10


@pytest.mark.parametrize("kind", ["compressed", "parquet"])
def test_shards_without_random_access_are_read_once(
    inputs: ReaderInputs, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "compressed":
        source: Source = WebDataset.open(write_tars(tmp_path / "tars", pairs, num_shards=SHARDS, compressed=True))
    else:
        uri = write_parquet_images(tmp_path / "pool", pairs, num_shards=SHARDS)
        source = open_source(ParquetSource(uri=uri))
    expected = [pa.concat_tables(tables).combine_chunks() for tables in windows(inputs)]
    asked = Asked(source)
    monkeypatch.setattr(reader, "STRETCH_BYTES", 3_000)
    found = windows(asked.instead(inputs_of(source, tmp_path / "catalog")))
    assert all(len(tables) > 1 for tables in found)
    assert [pa.concat_tables(tables).combine_chunks() for tables in found] == expected
    assert asked.num_calls <= SHARDS * len(found)


def test_windows_read_at_once_fit_into_memory(inputs: ReaderInputs) -> None:
    num_bytes = sum(part.shard.num_bytes for part in inputs.parts)
    window = num_bytes / NUM_PAIRS * WINDOW * LANES
    assert tasks_at_once(inputs, num_ranks=1, memory=40.4 * window) == 10
    # the window of one of two is half as large, and so is its share of the memory
    assert tasks_at_once(inputs, num_ranks=2, memory=40.4 * window) == 10
    assert tasks_at_once(inputs, num_ranks=1, memory=window) == 2


@pytest.mark.parametrize("ahead", [1, 2, 9])
def test_segments_follow_each_other_without_a_gap(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setattr(reader, "STARTED_AHEAD", ahead)
    events: list[str] = []

    def start(segment: range) -> Iterator[pa.Table]:
        events.append(f"start {segment.start}")
        return iter([pa.table({"item": [item]}) for item in segment for _ in range(3)])

    for block in reader.in_turn([range(0, 4), range(4, 8), range(8, 9)], start, lambda segment: 3 * len(segment)):
        events.append(str(block["item"][0]))
    assert [int(event) for event in events if "start" not in event] == [item for item in range(9) for _ in range(3)]
    for following, before in ((4, 4 - ahead), (8, 8 - ahead)):
        # when the segment before it has `ahead` windows left, but not before that segment has started
        at = events.index(f"start {following}")
        assert str(max(before, following - 4)) in events[at:]
        assert str(max(before, following - 4)) not in events[:at]


def test_a_segment_without_rows_is_passed_over() -> None:
    blocks = {0: [], 1: [pa.table({"item": [7]})], 2: []}
    found = reader.in_turn([range(0, 1), range(1, 2), range(2, 3)], lambda one: iter(blocks[one.start]), lambda _: 1)
    assert [block["item"][0].as_py() for block in found] == [7]


def test_blocks_grow_with_the_object_store() -> None:
    mib = 2**20
    assert block_bytes(64 * mib) == 16 * mib
    assert block_bytes(64 * 30 * mib) == 30 * mib
    assert block_bytes(2**40) == 64 * mib
