"""Read the training samples: each rank streams the pairs of its lanes through an ordered Ray Dataset, from any step.

An item is one window of every lane of the rank. Reading tasks look up the kept rows and read their bytes in training
order: one stretch at a time if shards are local tars, otherwise the whole window in coalesced ranges. Decoding tasks
crop and decode images to uint8, and tokenise captions (`decoding.py`). Only kept pairs are read and decoded. A pair
that cannot be decoded, or has no caption, keeps its slot with `valid` false: without the slot, every later batch would
change. A read error is raised; it is never counted as a bad sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine import ray_cluster
from orchestrator.engine.process_cache import fetched
from orchestrator.errors import UserError
from orchestrator.source import PAIR_COLUMNS, Part, Source, Status
from orchestrator.storage import files
from orchestrator.training.decoding import MIN_BLOCK_BYTES, Decoding, decode_block
from orchestrator.training.prefetch import prefetch
from orchestrator.training.sample_order import Pairs, SampleOrder

OUTPUT_COLUMNS = ("caption", "key", "epoch", "ordinal")
# windows per Ray Dataset: the plan of a dataset grows with its items. The next dataset starts when the rank has this
# many windows of the present one left, so that its first blocks are ready in time
SEGMENT_ITEMS, STARTED_AHEAD = 256, 32
# encoded images that a reading task reads and yields at once: small compared with a node's memory, as many tasks run
# there; large compared with the cost of going over the window's shards once more
STRETCH_BYTES = 64 * 2**20
READ_CPUS, DECODE_CPUS = 0.25, 0.75
# blocks on their way from the object store to the rank
PREFETCH_BLOCKS = 4
# each block costs the rank some 5 ms of CPU time, so blocks are as large as memory allows: the rank's share of the
# object store holds this many. At 224 px, 64 MiB are 446 pairs
BLOCKS_IN_SHARE, MAX_BLOCK_BYTES = 64, 64 * 2**20
# the share of the cluster's memory for the reading tasks of all ranks; at least two tasks of a rank run, so that one
# reads while the pairs of the other are used
READ_SHARE, MIN_READING_TASKS = 0.25, 2


@dataclass(frozen=True, kw_only=True)
class ReaderInputs:
    """Everything that reads the samples of a phase; each process of reading tasks gets it once."""

    source: Source
    parts: tuple[Part, ...]
    catalog: Catalog
    keep: KeepList
    order: SampleOrder
    decoding: Decoding


def rank_blocks(inputs: ReaderInputs, *, rank: int, num_ranks: int, first_step: int) -> Iterator[pa.Table]:
    """Yield the rank's rows from `first_step`, in training order, as blocks of any size (`decoding.py`).

    A step takes the next `order.slots(num_ranks)` rows. Only the last batch of the phase may have fewer; the
    rank may have none of its rows."""
    order = inputs.order
    items = range(first_step // order.window_steps, -(-order.num_steps // order.window_steps))
    segments = [items[start : start + SEGMENT_ITEMS] for start in range(0, len(items), SEGMENT_ITEMS)]
    place = {"rank": rank, "num_ranks": num_ranks, "first_step": first_step}
    # Ray Data would cut larger blocks and join smaller ones, and copy the pixels
    decoding = replace(inputs.decoding, block_bytes=block_bytes(_store_share(num_ranks)))
    references = ray.put(inputs), ray.put(decoding)
    most = tasks_at_once(inputs, num_ranks=num_ranks, memory=ray.cluster_resources().get("memory", 0))

    def start(segment: range) -> Iterator[pa.Table]:
        return prefetch(_blocks(segment, *references, most, place), PREFETCH_BLOCKS)

    def num_rows(some: range) -> int:
        return sum(_num_rows(order, item, **place) for item in some)

    return in_turn(segments, start, num_rows)


def in_turn(
    segments: Sequence[range], start: Callable[[range], Iterator[pa.Table]], num_rows: Callable[[range], int]
) -> Iterator[pa.Table]:
    """Yield the blocks of all segments in order; start the next one before the end of the present one."""
    following = start(segments[0]) if segments else iter(())
    for segment, after in zip_longest(segments, segments[1:]):
        blocks, following, is_next_started = following, iter(()), after is None
        left, early = num_rows(segment), num_rows(segment[-STARTED_AHEAD:])
        for block in blocks:
            if not is_next_started and left <= early:
                following, is_next_started = start(after), True
            left -= block.num_rows
            yield block
        if not is_next_started:
            following = start(after)


def _blocks(
    segment: range, inputs: ray.ObjectRef, decoding: ray.ObjectRef, most: int, place: dict[str, int]
) -> Iterator[pa.Table]:
    rows = [{"item": item} for item in segment]
    read: Callable = partial(_read_items, reference=inputs, **place)  # type: ignore[arg-type]
    dataset = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(read, batch_size=1, num_cpus=READ_CPUS, compute=ray.data.TaskPoolStrategy(min(most, len(rows))))
        .map_batches(
            partial(_decode, reference=decoding), batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS
        )
    )
    # whole blocks, which are views of the object store: Ray Data's batches would be copies
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCH_BLOCKS)


def tasks_at_once(inputs: ReaderInputs, *, num_ranks: int, memory: float) -> int:
    """Return how many reading tasks of a rank may run at once on a cluster with `memory` bytes.

    Ray Data limits the bytes that tasks have yielded, but not the window that each task holds."""
    shards = {part.shard.uri: part.shard.num_bytes for part in inputs.parts}
    pair_bytes = sum(shards.values()) / max(1, sum(inputs.catalog.rows_per_part))
    window_bytes = pair_bytes * inputs.order.window_steps * inputs.order.slots(num_ranks)
    return max(MIN_READING_TASKS, int(READ_SHARE * memory / num_ranks / max(1, window_bytes)))


def block_bytes(store_share: float) -> int:
    """Return the bytes of a block, for a rank with this many bytes of the object store."""
    return int(min(max(store_share / BLOCKS_IN_SHARE, MIN_BLOCK_BYTES), MAX_BLOCK_BYTES))


def _store_share(num_ranks: int) -> float:
    # two datasets of a rank may run at once (`in_turn`), and others than training use the store too
    return ray.cluster_resources().get("object_store_memory", 2**31) / 3 / num_ranks


def batch_keys(inputs: ReaderInputs, step: int) -> list[str]:
    """Return the keys of the pairs of a global batch."""
    pairs = inputs.order.batch(step)
    keys = []
    for index in np.unique(pairs.part).tolist():
        table = inputs.catalog.table(index, ("key",))
        kept = np.flatnonzero(inputs.keep.mask(index, table.num_rows))
        keys += table["key"].take(kept[pairs.kept_ordinal[pairs.part == index]]).to_pylist()
    return keys


def read_window(inputs: ReaderInputs, item: int, *, rank: int, num_ranks: int, first_step: int) -> Iterator[pa.Table]:
    """Yield the rank's pairs of an item from `first_step`, in training order, as tables.

    Columns: `image` (large_binary), `caption`, `key`, `epoch` and `ordinal`. A table has at most `STRETCH_BYTES` of
    encoded images, or one pair. From local tars, a table's images are read when the table is requested.
    Errors: `UserError` for a missing shard; `OSError`."""
    pairs = _in_batch_order(inputs.order, item, rank, num_ranks, first_step)
    if not len(pairs.part):
        return
    rows = _catalog_rows(inputs, pairs)
    if _random_access_is_cheap(inputs, rows):
        # each stretch reads forward once through each of its parts. Every image is still read once, but the window's
        # shards are passed once per stretch, each time for other pairs of the same region
        for stretch in _stretches(pc.fill_null(rows["image_size"], 0).to_numpy()):
            piece = rows.slice(stretch.start, stretch.stop - stretch.start)
            yield _with_images(piece, _images(inputs, piece))
        return
    # a lane is shuffled across its window: neighbours in the shards are in the same window, but not in the same stretch
    images = _images(inputs, rows)
    for stretch in _stretches(np.array([len(image or b"") for image in images])):
        piece = rows.slice(stretch.start, stretch.stop - stretch.start)
        table = _with_images(piece, images[stretch])
        # release what is yielded
        images[stretch] = None
        yield table


def configure_ray_data(*, num_ranks: int, worker_cpus: int | None) -> None:
    """Set this process's Ray Data context: ordered, with a rank's share of the CPUs that training does not use.

    `worker_cpus`: the setting `training.cpus_per_worker`."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # the default of 128 MiB is thousands of encoded images for one decoding task
    context.target_max_block_size = block_bytes(_store_share(num_ranks))
    # raise the task's own error, so that a user's mistake in a task is still one line
    context.raise_original_map_exception = True
    total = ray.cluster_resources()
    free_cpus = total.get("CPU", 1) - num_ranks * ray_cluster.cpus_per_worker(worker_cpus)
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        cpu=max(READ_CPUS + DECODE_CPUS, free_cpus / num_ranks),
        object_store_memory=_store_share(num_ranks),
    )


def _read_items(
    batch: dict[str, NDArray], *, reference: ray.ObjectRef, rank: int, num_ranks: int, first_step: int
) -> Iterator[pa.Table]:
    inputs: ReaderInputs = fetched(reference)
    for item in batch["item"].tolist():
        yield from read_window(inputs, item, rank=rank, num_ranks=num_ranks, first_step=first_step)


def _decode(block: pa.Table, *, reference: ray.ObjectRef) -> Iterator[pa.Table]:
    yield from decode_block(block, decoding=fetched(reference))


def _num_rows(order: SampleOrder, item: int, *, rank: int, num_ranks: int, first_step: int) -> int:
    start, stop = _steps(order, item, first_step)
    ends = (order.positions(lane, start, stop - start) for lane in order.rank_lanes(rank, num_ranks))
    return sum(end - begin for begin, end in ends)


def _steps(order: SampleOrder, item: int, first_step: int) -> tuple[int, int]:
    return max(item * order.window_steps, first_step), min((item + 1) * order.window_steps, order.num_steps)


def _in_batch_order(order: SampleOrder, item: int, rank: int, num_ranks: int, first_step: int) -> Pairs:
    start, stop = _steps(order, item, first_step)
    lanes = [
        order.pairs(lane, *order.positions(lane, start, stop - start)) for lane in order.rank_lanes(rank, num_ranks)
    ]
    steps = np.concatenate([np.arange(len(lane.part)) // order.lane_step for lane in lanes])
    # a stable sort: inside a step, the lanes stay in order
    by_step = np.argsort(steps, kind="stable")
    return Pairs(*(np.concatenate(columns)[by_step] for columns in zip(*lanes, strict=True)))


def _catalog_rows(inputs: ReaderInputs, pairs: Pairs) -> pa.Table:
    # the catalog rows of the pairs, in the order of the pairs; each part's columns and keep list are read once
    tables, slots = [], []
    for index in np.unique(pairs.part).tolist():
        wanted = np.flatnonzero(pairs.part == index)
        catalog = inputs.catalog.table(index, PAIR_COLUMNS)
        rows = np.flatnonzero(inputs.keep.mask(index, catalog.num_rows))[pairs.kept_ordinal[wanted]]
        table = catalog.take(rows).append_column("part", pa.array(pairs.part[wanted]))
        table = table.append_column("epoch", pa.array(pairs.epoch[wanted]))
        tables.append(table.append_column("ordinal", pa.array(inputs.catalog.first_ordinals[index] + rows)))
        slots.append(wanted)
    return pa.concat_tables(tables).combine_chunks().take(np.argsort(np.concatenate(slots), kind="stable"))


def _random_access_is_cheap(inputs: ReaderInputs, rows: pa.Table) -> bool:
    # whether reading a few images costs no more than their bytes. Not so with an object store (one request each, unless
    # neighbours are read together), a compressed tar (read from its start) or Parquet (whole row groups)
    present = rows.filter(pc.not_equal(rows["status"], int(Status.MISSING_IMAGE)))
    have_offsets = not present["image_offset"].null_count and not present["image_size"].null_count
    parts = np.unique(rows["part"].to_numpy()).tolist()
    return have_offsets and all(files.is_local(inputs.parts[index].shard.uri) for index in parts)


def _stretches(sizes: NDArray[np.int64]) -> Iterator[slice]:
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        limit = ends[start] - sizes[start] + STRETCH_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        yield slice(start, stop)
        start = stop


def _images(inputs: ReaderInputs, rows: pa.Table) -> NDArray[np.object_]:
    part, ordinal = rows["part"].to_numpy(), rows["ordinal"].to_numpy()
    images = np.empty(rows.num_rows, object)
    for index in np.unique(part).tolist():
        slots = np.flatnonzero(part == index)
        # a source takes rows in ascending order; at an epoch border a pair may occur twice, but is read once
        _, first, back = np.unique(ordinal[slots], return_index=True, return_inverse=True)
        wanted = rows.select(PAIR_COLUMNS).take(slots[first])
        try:
            found = np.fromiter(inputs.source.images(inputs.parts[index], wanted), object, len(first))
        except FileNotFoundError as error:
            raise UserError(
                f"{inputs.parts[index].shard.uri} is missing; it existed when the catalog was built. "
                "Restore it and run the same command again to continue"
            ) from error
        images[slots] = found[back]
    return images


def _with_images(rows: pa.Table, images: NDArray[np.object_]) -> pa.Table:
    return pa.table({"image": pa.array(images, pa.large_binary()), **{name: rows[name] for name in OUTPUT_COLUMNS}})
