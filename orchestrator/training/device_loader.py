"""A rank's batches made ready beside the steps: tokens, masks and padding, in page-locked memory for a GPU."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from orchestrator.clip.model import Clip
from orchestrator.clip.train_step import Batch
from orchestrator.training.decoding import Rows
from orchestrator.training.jpegs import JpegDecoder
from orchestrator.training.reader import Feed, rank_batches

BATCHES_AHEAD = 2
EPOCH_BITS = 40
Item = TypeVar("Item")


@dataclass(frozen=True)
class Loaded:
    """A rank's share of a global batch: as it was read, and as the learner takes it."""

    rows: Rows
    batch: Batch


def load(
    feed: Feed, clip: Clip, *, rank: int, num_ranks: int, first_step: int, device: torch.device
) -> Iterator[Loaded]:
    """The rank's shares from `first_step` on, every one with the same number of slots."""
    slots = feed.stream.global_batch_size // num_ranks
    decoding = feed.decoding
    at_workers = decoding.decode_in == "workers"
    pixels = JpegDecoder(decoding.image_size, decoding.max_image_pixels, device) if at_workers else as_read
    # a rank whose lanes end before the last global batch still takes part in it, with no pair of its own
    none = no_rows(decoding.image_size)

    def shares() -> Iterator[Loaded]:
        for read in rank_batches(feed, rank=rank, num_ranks=num_ranks, first_step=first_step):
            rows, images = pixels(read)
            yield Loaded(rows, to_batch(rows, images, clip, slots, pin_memory=device.type == "cuda"))
        yield Loaded(none, to_batch(*as_read(none), clip, slots, pin_memory=device.type == "cuda"))

    return ahead(shares(), BATCHES_AHEAD)


def as_read(rows: Rows) -> tuple[Rows, torch.Tensor]:
    """The rows, and their pixels as the tasks decoded them: uint8 [n, 3, size, size]."""
    return rows, torch.from_numpy(np.ascontiguousarray(rows["image"])).permute(0, 3, 1, 2)


def ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same items, up to `depth` of them made in a thread before they are asked for; its errors come out here."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
        except BaseException as error:  # noqa: BLE001 it is raised again where the items are used
            ready.put((None, error))
        else:
            ready.put((None, StopIteration()))

    threading.Thread(target=work, daemon=True, name="loader").start()
    while True:
        item, error = ready.get()
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        yield item  # type: ignore[misc]


def no_rows(image_size: int) -> Rows:
    """A share without a pair."""
    nothing = {name: np.array([], object) for name in ("caption", "key", "problem")}
    return {
        "image": np.zeros((0, image_size, image_size, 3), np.uint8),
        "valid": np.zeros(0, bool),
        "epoch": np.zeros(0, np.int64),
        "ordinal": np.zeros(0, np.int64),
        **nothing,
    }


def to_batch(rows: Rows, images: torch.Tensor, clip: Clip, slots: int, *, pin_memory: bool = False) -> Batch:
    """Rows and their pixels as tensors, filled up with masked slots: every rank's share of a batch has the same size.

    The filling repeats the rows, so that a batch norm's statistics stay those of pictures."""
    num_rows = len(rows["valid"])
    texts = clip.tokenizer(list(rows["caption"])) if num_rows else clip.tokenizer([""])[:0]
    valid = torch.from_numpy(rows["valid"].astype(bool))
    keys = torch.from_numpy((rows["epoch"].astype(np.int64) << EPOCH_BITS) | rows["ordinal"].astype(np.int64))
    if num_rows < slots:
        fill = torch.arange(slots - num_rows) % max(1, num_rows)
        images, texts, keys = (_filled(column, fill, slots) for column in (images, texts, keys))
        valid = torch.cat([valid, valid.new_zeros(slots - num_rows)])
    tensors = (images, texts, valid, keys)
    return Batch(*(tensor.pin_memory() if pin_memory and tensor.is_cpu else tensor for tensor in tensors))


def _filled(column: torch.Tensor, fill: torch.Tensor, slots: int) -> torch.Tensor:
    if len(column):
        return torch.cat([column, column[fill]])
    return column.new_zeros(slots, *column.shape[1:])
