"""Batches for the training step, prepared in a thread in parallel: tokens, masks and padding; page-locked for a GPU."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from orchestrator.clip.model import Clip
from orchestrator.clip.train_step import Batch
from orchestrator.training.decoding import Rows
from orchestrator.training.jpegs import JpegDecoder
from orchestrator.training.reader import ReaderInputs, rank_batches

BATCHES_AHEAD = 2
# a pair's key in the run: the epoch above these bits, the ordinal in the pool below
EPOCH_BITS = 40
Item = TypeVar("Item")
Pixels = Callable[[Rows], tuple[Rows, torch.Tensor]]


@dataclass(frozen=True)
class LoadedBatch:
    """A rank's share of a global batch: the rows as read, and the batch for the training step."""

    rows: Rows
    batch: Batch


def load_batches(
    inputs: ReaderInputs, clip: Clip, *, rank: int, num_ranks: int, first_step: int, device: torch.device
) -> Iterator[LoadedBatch]:
    """Yield the rank's shares from `first_step`, all with the same number of slots."""
    return prefetch(_shares(inputs, clip, rank, num_ranks, first_step, device), BATCHES_AHEAD)


def _shares(
    inputs: ReaderInputs, clip: Clip, rank: int, num_ranks: int, first_step: int, device: torch.device
) -> Iterator[LoadedBatch]:
    slots, pin_memory = inputs.order.global_batch_size // num_ranks, device.type == "cuda"
    decoding = inputs.decoding
    pixels: Pixels = decoded_pixels
    if decoding.decode_in == "workers":
        pixels = JpegDecoder(decoding.image_size, decoding.max_image_pixels, device)
    for read in rank_batches(inputs, rank=rank, num_ranks=num_ranks, first_step=first_step):
        rows, images = pixels(read)
        yield LoadedBatch(rows, to_batch(rows, images, clip, slots, pin_memory=pin_memory))
    # a rank may have no pair in the last global batch, but still takes part in the step
    rows, images = decoded_pixels(no_rows(decoding.image_size))
    yield LoadedBatch(rows, to_batch(rows, images, clip, slots, pin_memory=pin_memory))


def decoded_pixels(rows: Rows) -> tuple[Rows, torch.Tensor]:
    """Return the rows, and the pixels that decoding tasks made: uint8 [n, 3, size, size]."""
    return rows, torch.from_numpy(np.ascontiguousarray(rows["image"])).permute(0, 3, 1, 2)


def prefetch(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Yield the same items; a thread makes up to `depth` of them ahead. Its errors are raised here."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    threading.Thread(target=_put_all, args=(items, ready), daemon=True, name="loader").start()
    while True:
        item, error = ready.get()
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        yield item  # type: ignore[misc]


def _put_all(items: Iterator[Item], ready: queue.Queue[tuple[Item | None, BaseException | None]]) -> None:
    try:
        for item in items:
            ready.put((item, None))
    except BaseException as error:  # noqa: BLE001 `prefetch` raises it again
        ready.put((None, error))
    else:
        ready.put((None, StopIteration()))


def no_rows(image_size: int) -> Rows:
    """Return a share without a pair."""
    nothing = {name: np.array([], object) for name in ("caption", "key", "problem")}
    return {
        "image": np.zeros((0, image_size, image_size, 3), np.uint8),
        "valid": np.zeros(0, bool),
        "epoch": np.zeros(0, np.int64),
        "ordinal": np.zeros(0, np.int64),
        **nothing,
    }


def to_batch(rows: Rows, images: torch.Tensor, clip: Clip, slots: int, *, pin_memory: bool = False) -> Batch:
    """Return rows and their pixels as tensors, padded with masked slots: all shares of a batch have the same size.

    The padding repeats the rows, so that the statistics of batch norms are those of real images."""
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
