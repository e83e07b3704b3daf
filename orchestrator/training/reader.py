"""The training stream, read: each rank streams its own lanes' pairs through an ordered Ray Dataset, from any step.

An item is one window of every lane the rank owns. Reading tasks look up the kept rows and fetch their bytes in the
stream's order: a stretch of it at a time where shards are local tars, elsewhere the whole window in coalesced ranges.
Decoding tasks crop and decode to uint8 (`decoding.py`); nothing unwanted is read or decoded. A pair that turns out
undecodable, or has no caption, keeps its slot with `valid` false: dropping it would shift every later batch. A read
error is raised, never mistaken for a bad pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.process_cache import fetched
from orchestrator.errors import UserError
from orchestrator.source import PAIR_COLUMNS, Part, Source, Status
from orchestrator.storage import files
from orchestrator.training.decoding import Decoding, Rows, decode_block
from orchestrator.training.sample_order import Pairs, Stream

GIVEN_COLUMNS = ("caption", "key", "epoch", "ordinal")
SEGMENT_ITEMS = 256
BLOCK_BYTES = 16 * 2**20
# of images that a reading task asks for, and gives, at once: small against a node's memory, where many tasks run, and
# large against a pass over the window's shards
STRETCH_BYTES = 64 * 2**20
READ_CPUS, DECODE_CPUS = 0.25, 0.75
PREFETCH_BATCHES = 2
# of the cluster's memory: what the reading tasks of all ranks may hold; two of a rank run in any case, so that one
# reads while the other's pairs are taken
READ_SHARE, FEWEST_READ = 0.25, 2


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
    most = tasks_at_once(feed, num_ranks=num_ranks, memory=ray.cluster_resources().get("memory", 0))
    for start in range(0, len(items), SEGMENT_ITEMS):
        rows = [{"item": item} for item in items[start : start + SEGMENT_ITEMS]]
        read = partial(_read_items, reference=reference, rank=rank, num_ranks=num_ranks, first_step=first_step)
        dataset = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map_batches(
                read, batch_size=1, num_cpus=READ_CPUS, compute=ray.data.TaskPoolStrategy(min(most, len(rows)))
            )
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


def tasks_at_once(feed: Feed, *, num_ranks: int, memory: float) -> int:
    """How many reading tasks of a rank may run at once on a cluster with so many bytes of memory: Ray Data counts what
    they have given, not the window that each may hold."""
    shards = {part.shard.uri: part.shard.num_bytes for part in feed.parts}
    pair_bytes = sum(shards.values()) / max(1, sum(feed.catalog.rows_per_part))
    window_bytes = pair_bytes * feed.stream.window_steps * feed.stream.global_batch_size / num_ranks
    return max(FEWEST_READ, int(READ_SHARE * memory / num_ranks / max(1, window_bytes)))


def batch_keys(feed: Feed, step: int) -> list[str]:
    """The keys of the pairs of a global batch."""
    pairs = feed.stream.batch(step)
    keys = []
    for index in np.unique(pairs.part).tolist():
        table = feed.catalog.table(index, ("key",))
        kept = np.flatnonzero(feed.keep.mask(index, table.num_rows))
        keys += table["key"].take(kept[pairs.kept_ordinal[pairs.part == index]]).to_pylist()
    return keys


def read_window(feed: Feed, item: int, *, rank: int, num_ranks: int, first_step: int) -> Iterator[pa.Table]:
    """The rank's pairs of an item from `first_step` on, in the stream's order, in tables of `STRETCH_BYTES` of encoded
    images at most, or of one pair: `image` (large_binary), `caption`, `key`, `epoch` and `ordinal`.

    Of local tars a table's images are read when it is asked for. Errors: `UserError` for a shard that is gone;
    `OSError`."""
    pairs = _in_batch_order(feed.stream, item, rank, num_ranks, first_step)
    if not len(pairs.part):
        return
    rows = _looked_up(feed, pairs)
    if _are_at_hand(feed, rows):
        # a stretch goes once, forward, over each part that it takes from: every image is read once as before, but the
        # window's shards are gone over once a stretch, each time for other pairs of the same neighbourhood
        for stretch in _stretches(pc.fill_null(rows["image_size"], 0).to_numpy()):
            piece = rows.slice(stretch.start, stretch.stop - stretch.start)
            yield _with_images(piece, _images(feed, piece))
        return
    # a lane is shuffled all over its window: a stretch's pairs are not neighbours, those of the window are
    images = _images(feed, rows)
    for stretch in _stretches(np.array([len(image or b"") for image in images])):
        piece = rows.slice(stretch.start, stretch.stop - stretch.start)
        table = _with_images(piece, images[stretch])
        # what is given is not held any longer
        images[stretch] = None
        yield table


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
        yield from read_window(feed, item, rank=rank, num_ranks=num_ranks, first_step=first_step)


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


def _looked_up(feed: Feed, pairs: Pairs) -> pa.Table:
    # the pairs' rows of the catalog, in the order of the pairs; each part's columns and bits are read once
    tables, order = [], []
    for index in np.unique(pairs.part).tolist():
        wanted = np.flatnonzero(pairs.part == index)
        catalog = feed.catalog.table(index, PAIR_COLUMNS)
        rows = np.flatnonzero(feed.keep.mask(index, catalog.num_rows))[pairs.kept_ordinal[wanted]]
        table = catalog.take(rows).append_column("part", pa.array(pairs.part[wanted]))
        table = table.append_column("epoch", pa.array(pairs.epoch[wanted]))
        tables.append(table.append_column("ordinal", pa.array(feed.catalog.first_ordinals[index] + rows)))
        order.append(wanted)
    return pa.concat_tables(tables).combine_chunks().take(np.argsort(np.concatenate(order), kind="stable"))


def _are_at_hand(feed: Feed, rows: pa.Table) -> bool:
    # whether a few images cost no more than their bytes: not so of an object store (a request each, once neighbours
    # are not asked for together), of a compressed tar (a walk over it) and of Parquet (whole row groups)
    there = rows.filter(pc.not_equal(rows["status"], int(Status.MISSING_IMAGE)))
    have_places = not there["image_offset"].null_count and not there["image_size"].null_count
    parts = np.unique(rows["part"].to_numpy()).tolist()
    return have_places and all(files.is_local(feed.parts[index].shard.uri) for index in parts)


def _stretches(sizes: NDArray[np.int64]) -> Iterator[slice]:
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        limit = ends[start] - sizes[start] + STRETCH_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        yield slice(start, stop)
        start = stop


def _images(feed: Feed, rows: pa.Table) -> NDArray[np.object_]:
    part, ordinal = rows["part"].to_numpy(), rows["ordinal"].to_numpy()
    images = np.empty(rows.num_rows, object)
    for index in np.unique(part).tolist():
        places = np.flatnonzero(part == index)
        # a source wants rows in ascending order; at an epoch border a pair may be there twice: its bytes are read once
        _, first, back = np.unique(ordinal[places], return_index=True, return_inverse=True)
        wanted = rows.select(PAIR_COLUMNS).take(places[first])
        try:
            found = np.fromiter(feed.source.images(feed.parts[index], wanted), object, len(first))
        except FileNotFoundError as error:
            raise UserError(
                f"{feed.parts[index].shard.uri} is gone, which was there when the pool was catalogued; "
                "put it back, and the same command goes on"
            ) from error
        images[places] = found[back]
    return images


def _with_images(rows: pa.Table, images: NDArray[np.object_]) -> pa.Table:
    return pa.table({"image": pa.array(images, pa.large_binary()), **{name: rows[name] for name in GIVEN_COLUMNS}})
