"""The training stream, read: each rank streams its own lanes' pairs through an ordered Ray Dataset, from any step.

An item is one window of every lane the rank owns. Reading tasks look up the kept rows, fetch their bytes in coalesced
ranges and put them in the stream's order; decoding tasks crop and decode to uint8 (`decoding.py`); nothing unwanted is
read or decoded. A pair that turns out undecodable, or has no caption, keeps its slot with `valid` false: dropping it
would shift every later batch. A read error is raised, never mistaken for a bad pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from orchestrator.catalog import Catalog
from orchestrator.errors import UserError
from orchestrator.keeplist import KeepList
from orchestrator.shared import fetched
from orchestrator.source import Part, Source
from orchestrator.training.decoding import Decoding, Rows, decode_block
from orchestrator.training.stream import Pairs, Stream

READ_COLUMNS = ("key", "caption", "status", "image_offset", "image_size")
SEGMENT_ITEMS = 256
BLOCK_BYTES = 16 * 2**20
READ_CPUS, DECODE_CPUS = 0.25, 0.75
PREFETCH_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What reading a phase's stream takes; travels to each process of reading tasks once."""

    source: Source
    parts: tuple[Part, ...]
    catalog: Catalog
    keep: KeepList
    stream: Stream
    decoding: Decoding


def rank_batches(feed: Feed, *, rank: int, num_ranks: int, first_step: int) -> Iterator[Rows]:
    """The rank's share of each global batch from `first_step` on, in order, `global_batch_size / num_ranks` rows each.

    Rows: `image` uint8 [n, size, size, 3] (or with `decode_in` workers what `handed_over` gives in its place),
    `caption`, `key`, `valid` bool, `problem` (empty where valid), `epoch` and `ordinal` (of the pair in the pool). Only
    the last batch of the phase may have fewer rows; the iterator ends before it where the rank has none."""
    stream = feed.stream
    items = range(first_step // stream.window_steps, -(-stream.num_steps // stream.window_steps))
    reference = ray.put(feed)
    for start in range(0, len(items), SEGMENT_ITEMS):
        rows = [{"item": item} for item in items[start : start + SEGMENT_ITEMS]]
        read = partial(_read_items, reference=reference, rank=rank, num_ranks=num_ranks, first_step=first_step)
        dataset = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map_batches(read, batch_size=1, num_cpus=READ_CPUS)
            .map_batches(
                partial(decode_block, decoding=feed.decoding),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=DECODE_CPUS,
            )
        )
        yield from dataset.iter_batches(
            batch_size=stream.global_batch_size // num_ranks, batch_format="numpy", prefetch_batches=PREFETCH_BATCHES
        )


def batch_keys(feed: Feed, step: int) -> list[str]:
    """The keys of the pairs of a global batch."""
    pairs = feed.stream.batch(step)
    keys = []
    for index in np.unique(pairs.part).tolist():
        table = feed.catalog.table(index, ("key",))
        kept = np.flatnonzero(feed.keep.mask(index, table.num_rows))
        keys += table["key"].take(kept[pairs.kept_ordinal[pairs.part == index]]).to_pylist()
    return keys


def own_the_context(*, num_ranks: int, worker_cpus: float) -> None:
    """Sets this process's Ray Data context: ordered, and a rank's share of what the training workers leave free."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # what a task reads is cut into blocks of this many bytes, else of 128 MiB: thousands of pictures for one to decode
    context.target_max_block_size = BLOCK_BYTES
    # the cause as it was raised, so that a user's mistake in a task is still one line
    context.raise_original_map_exception = True
    total = ray.cluster_resources()
    free_cpus = total.get("CPU", 1) - num_ranks * worker_cpus
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        cpu=max(READ_CPUS + DECODE_CPUS, free_cpus / num_ranks),
        object_store_memory=total.get("object_store_memory", 2**31) / 2 / num_ranks,
    )


def _read_items(
    batch: dict[str, NDArray], *, reference: ray.ObjectRef, rank: int, num_ranks: int, first_step: int
) -> Iterator[pa.Table]:
    feed: Feed = fetched(reference)
    for item in batch["item"].tolist():
        yield _read_window(feed, item, rank, num_ranks, first_step)


def _read_window(feed: Feed, item: int, rank: int, num_ranks: int, first_step: int) -> pa.Table:
    pairs = _in_batch_order(feed.stream, item, rank, num_ranks, first_step)
    order: list[NDArray[np.int64]] = []
    tables: list[pa.Table] = []
    for index in np.unique(pairs.part).tolist():
        wanted = np.flatnonzero(pairs.part == index)
        tables.append(_read_pairs(feed, index, pairs.kept_ordinal[wanted], pairs.epoch[wanted]))
        order.append(wanted)
    if not tables:
        return pa.table({})
    return pa.concat_tables(tables).take(np.argsort(np.concatenate(order), kind="stable"))


def _in_batch_order(stream: Stream, item: int, rank: int, num_ranks: int, first_step: int) -> Pairs:
    start = max(item * stream.window_steps, first_step)
    stop = min((item + 1) * stream.window_steps, stream.num_steps)
    lanes = [
        stream.pairs(lane, *stream.positions(lane, start, stop - start)) for lane in stream.rank_lanes(rank, num_ranks)
    ]
    steps = np.concatenate([np.arange(len(lane.part)) // stream.lane_step for lane in lanes])
    # stable: inside a step the lanes follow one another
    order = np.argsort(steps, kind="stable")
    return Pairs(*(np.concatenate(columns)[order] for columns in zip(*lanes, strict=True)))


def _read_pairs(feed: Feed, index: int, kept_ordinals: NDArray[np.int64], epochs: NDArray[np.int64]) -> pa.Table:
    catalog = feed.catalog.table(index, READ_COLUMNS)
    rows = np.flatnonzero(feed.keep.mask(index, catalog.num_rows))[kept_ordinals]
    # at an epoch border a window may hold a pair twice: its bytes are read once
    unique_rows, back = np.unique(rows, return_inverse=True)
    wanted = catalog.take(unique_rows)
    try:
        images = list(feed.source.images(feed.parts[index], wanted))
    except FileNotFoundError as error:
        raise UserError(
            f"{feed.parts[index].shard.uri} is gone, which was there when the pool was catalogued; "
            "put it back, and the same command goes on"
        ) from error
    table = pa.table(
        {
            "image": pa.array(images, pa.large_binary()),
            "caption": wanted["caption"],
            "key": wanted["key"],
        }
    ).take(back)
    ordinals = feed.catalog.first_ordinals[index] + rows
    return table.append_column("epoch", pa.array(epochs)).append_column("ordinal", pa.array(ordinals))
