"""Batches for the training step, made in a thread beside it: blocks of decoding tasks to padded, masked tensors.

The thread copies each pixel once on the CPU, from the blocks in the object store into the memory of the batch. On a GPU
that memory is page-locked, and a stream of the loader copies it to the device up to `BATCHES_AHEAD` batches before the
step needs it. Three rules keep these copies safe:

- torch reuses page-locked memory only after the copies that read it: its allocator records an event for each.
- The stream of the step waits for the event that the loader records after the last copy of a batch.
- The device's memory of a batch belongs to the loader's stream. `record_stream` tells the allocator that the step reads
  it too, so that it is not given to a later batch before that step has ended.

Nothing here imports Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from orchestrator.clip.train_step import Batch
from orchestrator.training.decoding import Decoding, Rows, array_of
from orchestrator.training.jpegs import JpegDecoder
from orchestrator.training.prefetch import prefetch

BATCHES_AHEAD = 2
# a pair's key in the run: the epoch above these bits, the ordinal in the pool below
EPOCH_BITS = 40


@dataclass(frozen=True)
class LoadedBatch:
    """A rank's share of a global batch: `key`, `valid` and `problem` of its rows, and the batch for the step."""

    rows: Rows
    batch: Batch


def load_batches(
    blocks: Iterator[pa.Table], decoding: Decoding, *, slots: int, device: torch.device
) -> Iterator[LoadedBatch]:
    """Return the rank's shares of the global batches, each with `slots` slots, from the blocks of its rows.

    Images, masks and keys are on the device, texts on the CPU: the step cuts them before it copies them."""
    if device.type != "cuda":
        return prefetch(_loaded(blocks, decoding, slots, device), BATCHES_AHEAD)
    return _received(prefetch(_sent(blocks, decoding, slots, device), BATCHES_AHEAD), device)


def _received(sent: Iterator[tuple[LoadedBatch, torch.cuda.Event]], device: torch.device) -> Iterator[LoadedBatch]:
    # this part of the loader runs in the thread of the steps
    for loaded, copied in sent:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in (loaded.batch.images, loaded.batch.valid, loaded.batch.keys):
            assert tensor is not None
            tensor.record_stream(current)
        yield loaded


def _sent(
    blocks: Iterator[pa.Table], decoding: Decoding, slots: int, device: torch.device
) -> Iterator[tuple[LoadedBatch, torch.cuda.Event]]:
    # a new thread works on device 0, where the first call would start a context, and on the stream of the steps
    torch.cuda.set_device(device)
    torch.cuda.set_stream(torch.cuda.Stream(device))
    for loaded in _loaded(blocks, decoding, slots, device):
        batch = to_device(loaded.batch, device)
        copied = torch.cuda.Event()
        copied.record()
        yield replace(loaded, batch=batch), copied


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with images, masks and keys on the device; the copies are queued on the current stream."""
    assert batch.keys is not None
    return replace(
        batch,
        images=batch.images.to(device, non_blocking=True),
        valid=batch.valid.to(device, non_blocking=True),
        keys=batch.keys.to(device, non_blocking=True),
    )


def _loaded(blocks: Iterator[pa.Table], decoding: Decoding, slots: int, device: torch.device) -> Iterator[LoadedBatch]:
    decoder = None
    if decoding.decode_in == "workers":
        decoder = JpegDecoder(decoding.image_size, decoding.max_image_pixels, device)
    pin_memory = device.type == "cuda"
    for share in shares(blocks, slots):
        yield loaded_batch(share, decoding, slots, decoder, pin_memory=pin_memory)
    # a rank may have no pair in the last global batch, but still takes part in the step
    yield loaded_batch([], decoding, slots, None, pin_memory=pin_memory)


def shares(blocks: Iterator[pa.Table], slots: int) -> Iterator[list[pa.Table]]:
    """Cut the rows of the blocks into shares of `slots` rows, as views; the last one may have fewer."""
    share: list[pa.Table] = []
    for block in blocks:
        start = 0
        while start < block.num_rows:
            room = slots - sum(table.num_rows for table in share)
            share.append(block.slice(start, room))
            start += room
            if share[-1].num_rows == room:
                yield share
                share = []
    if share:
        yield share


def loaded_batch(
    share: Sequence[pa.Table], decoding: Decoding, slots: int, decoder: JpegDecoder | None, *, pin_memory: bool = False
) -> LoadedBatch:
    """Return a share as tensors, padded with masked slots: all shares of a batch have the same size.

    The padding repeats the rows, so that the statistics of batch norms are those of real images. `decoder`: for blocks
    of encoded images."""
    rows: Rows = {
        "key": _column(share, "key", object),
        "problem": _column(share, "problem", object),
        "valid": _column(share, "valid", bool),
    }
    if decoder is not None:
        rows, images = decoder(rows, _column(share, "encoded", object), _lists(share, "box", 5))
        images = _padded(images, slots)
    else:
        images = _pixels(share, decoding.image_size, slots, pin_memory)
    num_rows = len(rows["valid"])
    tokens = decoding.captions([]).shape[1]
    keys = (_column(share, "epoch", np.int64) << EPOCH_BITS) | _column(share, "ordinal", np.int64)
    valid = torch.zeros(slots, dtype=torch.bool)
    valid[:num_rows] = torch.from_numpy(rows["valid"])
    texts = _padded(torch.from_numpy(_lists(share, "tokens", tokens)).long(), slots)
    small = (texts, valid, _padded(torch.from_numpy(keys), slots))
    return LoadedBatch(rows, Batch(images, *(tensor.pin_memory() if pin_memory else tensor for tensor in small)))


def _pixels(share: Sequence[pa.Table], size: int, slots: int, pin_memory: bool) -> torch.Tensor:
    """Return uint8 [slots, 3, size, size], channels last, with one copy of each pixel."""
    images = empty_images(slots, size, pin_memory)
    memory, start = images.view(slots, -1).numpy(), 0
    for pixels in _chunks(share, "image"):
        memory[start : start + len(pixels)] = array_of(pixels)
        start += len(pixels)
    if start < slots:
        images[start:] = images[_repeats(start, slots)] if start else 0
    return images.permute(0, 3, 1, 2)


def empty_images(slots: int, size: int, pin_memory: bool) -> torch.Tensor:
    """Return memory for the pixels of a batch, uint8 [slots, size, size, 3]."""
    return torch.empty((slots, size, size, 3), dtype=torch.uint8, pin_memory=pin_memory)


def _padded(column: torch.Tensor, slots: int) -> torch.Tensor:
    if len(column) == slots:
        return column
    if not len(column):
        return column.new_zeros(slots, *column.shape[1:])
    return torch.cat([column, column[_repeats(len(column), slots)]])


def _repeats(num_rows: int, slots: int) -> torch.Tensor:
    return torch.arange(slots - num_rows) % num_rows


def _chunks(share: Sequence[pa.Table], name: str) -> Iterator[pa.Array]:
    return (chunk for table in share for chunk in table[name].chunks)


def _column(share: Sequence[pa.Table], name: str, dtype: type) -> np.ndarray:
    columns = [chunk.to_numpy(zero_copy_only=False) for chunk in _chunks(share, name)]
    return np.concatenate(columns).astype(dtype, copy=False) if columns else np.zeros(0, dtype)


def _lists(share: Sequence[pa.Table], name: str, length: int) -> np.ndarray:
    columns = [array_of(chunk) for chunk in _chunks(share, name)]
    return np.concatenate(columns) if columns else np.zeros((0, length), np.int64)
