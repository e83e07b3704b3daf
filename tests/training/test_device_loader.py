"""Batches for the training step: blocks cut into shares of one size, the right order of streams, and no Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from orchestrator.clip.tokens import ClipCaptions
from orchestrator.training import device_loader
from orchestrator.training.decoding import Rows, lists_of
from orchestrator.training.device_loader import LoadedBatch, load_batches, shares
from orchestrator.training.prefetch import prefetch
from tests.support.reader_inputs import plain_decoding, rows_of

SIZE, CONTEXT = 16, 12
CPU = torch.device("cpu")
DECODING = plain_decoding(SIZE, context=CONTEXT)


def block(first: int, num_rows: int) -> pa.Table:
    """Return a block of pairs with the ordinals from `first`; every fifth one is not valid."""
    ordinals = np.arange(first, first + num_rows)
    images = np.random.default_rng(first).integers(0, 256, (num_rows, SIZE, SIZE, 3), dtype=np.uint8)
    return pa.table(
        {
            "image": lists_of(images),
            "tokens": lists_of(ClipCaptions(CONTEXT)([f"picture {ordinal}" for ordinal in ordinals])),
            "key": [f"{ordinal:03d}" for ordinal in ordinals],
            "valid": ordinals % 5 != 1,
            "problem": ["" if ordinal % 5 != 1 else "undecodable: no" for ordinal in ordinals],
            "epoch": np.full(num_rows, 3),
            "ordinal": ordinals,
        }
    )


def blocks(*sizes: int) -> list[pa.Table]:
    ends = np.cumsum(sizes)
    return [block(int(end) - size, size) for end, size in zip(ends, sizes, strict=True)]


def load(some: list[pa.Table], slots: int) -> list[LoadedBatch]:
    return list(load_batches(iter(some), DECODING, slots=slots, device=CPU))


def assert_equal(share: LoadedBatch, rows: Rows, slots: int) -> None:
    """Compare a share with its rows, slot by slot; the padding repeats the rows."""
    num, batch = len(rows["key"]), share.batch
    assert batch.keys is not None
    for slot in range(slots):
        row = slot % num
        assert np.array_equal(batch.images[slot].permute(1, 2, 0).numpy(), rows["image"][row])
        assert batch.texts[slot].tolist() == rows["tokens"][row].tolist()
        assert batch.keys[slot].item() == (3 << 40) + rows["ordinal"][row]
        assert batch.valid[slot].item() == (slot < num and bool(rows["valid"][row]))
    assert share.rows["key"].tolist() == rows["key"].tolist()
    assert share.rows["problem"].tolist() == rows["problem"].tolist()
    assert share.rows["valid"].tolist() == rows["valid"].tolist()


@pytest.mark.parametrize("sizes", [(8,), (3, 5), (1, 1, 6), (30,), (5, 9, 2, 1, 10), (0, 7, 0, 4), (24, 0)])
@pytest.mark.parametrize("slots", [1, 4, 7, 8])
def test_blocks_of_any_size_give_the_same_batches(sizes: tuple[int, ...], slots: int) -> None:
    some = blocks(*sizes)
    found, expected = load(some, slots), rows_of(some, slots, SIZE)
    # one more share, without a pair, for a rank that has none in the last batch
    assert len(found) == len(expected) + 1
    for share, rows in zip(found, expected, strict=False):
        assert_equal(share, rows, slots)


def test_tensors_have_the_types_of_the_step() -> None:
    batch = load(blocks(4), 4)[0].batch
    assert batch.images.shape == (4, 3, SIZE, SIZE)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.keys is not None
    assert [tensor.dtype for tensor in (batch.images, batch.texts, batch.valid, batch.keys)] == [
        torch.uint8,
        torch.int64,
        torch.bool,
        torch.int64,
    ]


@pytest.mark.parametrize("some", [[], blocks(0)])
def test_a_share_without_a_pair_is_all_masked(some: list[pa.Table]) -> None:
    (share,) = load(some, 3)
    assert share.batch.images.shape == (3, 3, SIZE, SIZE)
    assert not share.batch.images.any()
    assert share.batch.texts.shape == (3, CONTEXT)
    assert not share.batch.valid.any()
    assert len(share.rows["key"]) == 0


def test_shares_are_views_of_the_blocks() -> None:
    some = blocks(10, 10)
    before = pa.total_allocated_bytes()
    assert [[table.num_rows for table in share] for share in shares(iter(some), 8)] == [[8], [2, 6], [4]]
    assert pa.total_allocated_bytes() - before < 1000


class FakeCuda:
    """The calls of torch.cuda, in their order; tensors stay where they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[str] = []
        for name in ("Stream", "Event", "set_device", "set_stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(device_loader, "to_device", self.to_device)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: self.calls.append(f"kept by {stream}")
        )
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))

    def Stream(self, device: torch.device) -> str:
        return f"loader's stream on {device}"

    def set_device(self, device: torch.device) -> None:
        self.calls.append(f"device {device}")

    def set_stream(self, stream: str) -> None:
        self.calls.append(stream)

    def to_device(self, batch: Any, device: torch.device) -> Any:
        self.calls.append("copies queued")
        return batch

    def Event(self) -> Any:
        calls = self.calls

        class Event:
            def record(self) -> None:
                calls.append("event recorded")

        return Event()

    def current_stream(self, device: torch.device) -> Any:
        calls = self.calls

        class Current:
            def wait_event(self, event: Any) -> None:
                calls.append("step waits")

            def __str__(self) -> str:
                return "step"

        return Current()


def test_the_step_waits_for_the_copies_and_keeps_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    # in one thread, so that the calls have one order
    monkeypatch.setattr(device_loader, "prefetch", lambda items, depth: items)
    loaded = load_batches(iter(blocks(4)), DECODING, slots=4, device=torch.device("cuda:1"))
    share = next(loaded)
    assert fake.calls == [
        "device cuda:1",
        "loader's stream on cuda:1",
        "copies queued",
        "event recorded",
        "step waits",
        *["kept by step"] * 3,
    ]
    assert_equal(share, rows_of(blocks(4), 4, SIZE)[0], 4)


def test_prefetched_items_come_in_order_and_are_made_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            yield i

    found = prefetch(items(), 2)
    end = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert made == [0, 1, 2], "before the first one is taken: two in the queue, one made"
    assert list(found) == [0, 1, 2, 3, 4]


def test_an_error_in_the_thread_is_raised_where_the_items_are_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise FileNotFoundError("a shard is gone")

    found = prefetch(items(), 2)
    assert next(found) == 1
    with pytest.raises(FileNotFoundError, match="a shard is gone"):
        next(found)


def test_the_feed_and_the_model_need_no_ray() -> None:
    program = (
        "import sys, pkgutil; sys.modules['ray'] = None\n"
        "import orchestrator.clip, orchestrator.training.device_loader, orchestrator.training.jpegs\n"
        "for module in pkgutil.iter_modules(orchestrator.clip.__path__, 'orchestrator.clip.'):\n"
        "    __import__(module.name)\n"
        "assert 'orchestrator.clip.train_step' in sys.modules\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
