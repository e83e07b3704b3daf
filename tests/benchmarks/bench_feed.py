"""Measure the CPU time of a rank's process for each pair, before and after blocks were made in the shape of batches.

PYTHONPATH=. python tests/benchmarks/bench_feed.py

The steady state begins after the first quarter of the batches. "all" also counts the start of the dataset.

The rank's process of this script only feeds: it takes batches and drops them. `before` is what the loader did until
version 0.2: Ray Data joins blocks into batches, the rank tokenises the captions, and the batch is copied once more into
page-locked memory. `after` has blocks of the smallest and of the largest size that training chooses. `without Ray` is
one copy of the pixels and the conversion of the tokens, from a block that is in memory. Decoding tasks give blank
pixels, so that this machine's cores are not the limit. In place of page-locked memory, which torch keeps and uses
again, a few batches of ordinary memory take turns."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch
from open_clip import SimpleTokenizer

from orchestrator.training import device_loader
from orchestrator.training.decoding import MIN_BLOCK_BYTES, Decoding, lists_of
from orchestrator.training.device_loader import load_batches
from orchestrator.training.prefetch import prefetch
from orchestrator.training.reader import MAX_BLOCK_BYTES, PREFETCH_BLOCKS
from tests.support.noisy_texts import like_captions
from tests.support.reader_inputs import plain_decoding

CONTEXT, ROUNDS, NUM_KEPT = 77, 2, 5


class Spent(NamedTuple):
    """Microseconds of the rank's CPU for each pair, in the steady state and in all."""

    steady: float
    all: float


def main() -> None:
    """Print one Markdown row for each way to feed, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--slots", type=int, default=1024)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # as page-locked memory: mapped once, then used again. Two batches wait, one is made, one is used
    kept = cycle(torch.ones((asked.slots, asked.size, asked.size, 3), dtype=torch.uint8) for _ in range(NUM_KEPT))
    device_loader.empty_images = lambda slots, size, pin_memory: next(kept)
    decoding = plain_decoding(asked.size, context=CONTEXT)
    large = replace(decoding, block_bytes=MAX_BLOCK_BYTES)
    captions = like_captions()[: large.block_rows]
    ways: dict[str, Callable[[], Iterator[object]]] = {
        "before": partial(before, asked.pairs, asked.slots, decoding, captions),
        f"after, blocks of {MIN_BLOCK_BYTES >> 20} MiB": partial(after, asked.pairs, asked.slots, decoding, captions),
        f"after, blocks of {MAX_BLOCK_BYTES >> 20} MiB": partial(after, asked.pairs, asked.slots, large, captions),
        "after, without Ray": partial(without_ray, asked.pairs, asked.slots, decoding, captions),
    }
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    spent: dict[str, list[Spent]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            spent[name].append(measured(way, asked.pairs, asked.slots))
    print(f"\n| way, {asked.size} px | CPU us of the rank a pair, steady state | all |\n|---|---|---|")
    # the first round also starts the processes of the tasks
    for name, values in spent.items():
        print(f"| {name} | {' | '.join(f'{statistics.mean(one):.1f}' for one in zip(*values[1:], strict=True))} |")


def measured(way: Callable[[], Iterator[object]], num_pairs: int, slots: int) -> Spent:
    """Take all batches of a way to feed."""
    begin = time.process_time()
    times = [time.process_time() for _ in way()]
    num_full = num_pairs // slots
    assert len(times) >= num_full
    first, last = num_full // 4, num_full - 1
    steady = (times[last] - times[first]) / ((last - first) * slots)
    return Spent(1e6 * steady, 1e6 * (times[-1] - begin) / num_pairs)


def before(num_pairs: int, slots: int, decoding: Decoding, captions: list[str]) -> Iterator[object]:
    """Yield batches by Ray Data's batcher and open_clip's tokenizer."""
    tokenizer, size = SimpleTokenizer(context_length=CONTEXT), decoding.image_size

    def blank(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        num = len(batch["item"])
        yield {
            "image": np.zeros((num, size, size, 3), np.uint8),
            "caption": np.array((captions * (num // len(captions) + 1))[:num], object),
            **small_columns(num),
        }

    def batches() -> Iterator[object]:
        dataset = dataset_of(num_pairs, decoding).map_batches(blank, batch_size=None)
        for rows in dataset.iter_batches(batch_size=slots, batch_format="numpy", prefetch_batches=2):
            images = torch.from_numpy(np.ascontiguousarray(rows["image"])).permute(0, 3, 1, 2)
            texts = tokenizer(list(rows["caption"]))
            memory = device_loader.empty_images(slots, size, True)
            yield memory[: len(images)].permute(0, 3, 1, 2).copy_(images), texts

    return prefetch(batches(), 2)


def after(num_pairs: int, slots: int, decoding: Decoding, captions: list[str]) -> Iterator[object]:
    """Yield batches as training does, but without pixels."""

    def blank(block: pa.Table) -> Iterator[pa.Table]:
        yield blank_block(block.num_rows, decoding, captions)

    def blocks() -> Iterator[pa.Table]:
        dataset = dataset_of(num_pairs, decoding).map_batches(blank, batch_size=None, batch_format="pyarrow")
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCH_BLOCKS)

    return load_batches(prefetch(blocks(), PREFETCH_BLOCKS), decoding, slots=slots, device=torch.device("cpu"))


def without_ray(num_pairs: int, slots: int, decoding: Decoding, captions: list[str]) -> Iterator[object]:
    """Yield batches from one block in memory, again and again."""
    rows = decoding.block_rows
    block = blank_block(rows, decoding, captions)
    blocks = (block.slice(0, num_pairs - start) for start in range(0, num_pairs, rows))
    return load_batches(blocks, decoding, slots=slots, device=torch.device("cpu"))


def dataset_of(num_pairs: int, decoding: Decoding) -> ray.data.Dataset:
    """Return the pairs' numbers, in blocks as decoding tasks get them."""
    rows = decoding.block_rows
    ray.data.DataContext.get_current().target_max_block_size = decoding.block_bytes
    tables = [pa.table({"item": np.arange(start, min(num_pairs, start + rows))}) for start in range(0, num_pairs, rows)]
    return ray.data.from_arrow(tables)


def blank_block(num_rows: int, decoding: Decoding, captions: list[str]) -> pa.Table:
    """Return a block of blank images with tokens of captions."""
    small = small_columns(num_rows)
    return pa.table(
        {
            "image": lists_of(np.zeros((num_rows, decoding.image_size, decoding.image_size, 3), np.uint8)),
            "tokens": lists_of(decoding.captions((captions * (num_rows // len(captions) + 1))[:num_rows])),
            "key": pa.array(small["key"]),
            "valid": small["valid"],
            "problem": pa.array(small["problem"]),
            "epoch": small["epoch"],
            "ordinal": small["ordinal"],
        }
    )


def small_columns(num: int) -> dict[str, np.ndarray]:
    """Return the other columns of a block."""
    return {
        "key": np.array([f"{row:09d}" for row in range(num)], object),
        "valid": np.ones(num, bool),
        "problem": np.full(num, "", object),
        "epoch": np.zeros(num, np.int64),
        "ordinal": np.arange(num),
    }


if __name__ == "__main__":
    main()
