"""Compare the sample order of training with open_clip_train's shuffle buffer and a full shuffle, and time it.

The pool has 1,000 shards of 10,000 pairs; a batch has 32,768 pairs. The script takes two neighbouring pairs of a shard.
How far apart are they in the epoch, and how often are they in the same batch? From how many shards does a batch come?
open_clip_train (8 ranks with 4 readers each) shuffles its shards and deals them out to the readers. Each reader draws
from a buffer of 5,000 pairs, and starts when the buffer holds 1,000. The median distance of a full shuffle is
1 - 1 / sqrt(2) = 29.3% of the epoch.

With `--train` the script trains one model on shards sorted by the source of their captions, and one on shards of the
same pairs, fully shuffled. A window is two batches long, as it is by default with batches of 32,768.

    python tests/benchmarks/bench_shuffle.py
    python tests/benchmarks/bench_shuffle.py --train --out runs/shuffle --samples 15000 --seeds 0 1
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.config import TrainingConfig
from orchestrator.demo.img2dataset import write_shard
from orchestrator.demo.shards import POOL_PATH
from orchestrator.training import sample_order
from orchestrator.training.sample_order import SampleOrder

Int = NDArray[np.int64]
NUM_SHARDS, SHARD_PAIRS = 1_000, 10_000
NUM_RANKS, NUM_READERS, BUFFER, BUFFER_START = 8, 4, 5_000, 1_000
TIMED_STEPS = 20
TRAINED_SHARD_PAIRS = 100
TRAINED_STREAM = {"global_batch_size": 128, "lanes": 8, "window": 32}


def made_up_stream(window: int) -> SampleOrder:
    """Return one epoch of the pool, in lanes and batches of the default sizes."""
    settings = TrainingConfig()
    return SampleOrder(
        kept_per_part=(SHARD_PAIRS,) * NUM_SHARDS,
        num_samples=NUM_SHARDS * SHARD_PAIRS,
        global_batch_size=settings.global_batch_size,
        num_lanes=settings.lanes,
        window=window,
        seed=0,
    )


def our_places(order: SampleOrder) -> Int:
    """Return the position of each pair in the epoch, int64 [pairs]."""
    places = np.empty(order.num_samples, np.int64)
    for lane in range(order.num_lanes):
        pairs = order.pairs(lane, 0, order.lane_length(lane))
        places[pairs.part * SHARD_PAIRS + pairs.kept_ordinal] = np.arange(len(pairs.part)) * order.num_lanes + lane
    return places


def full_places() -> Int:
    """Return the positions in a full shuffle."""
    return np.random.default_rng(0).permutation(NUM_SHARDS * SHARD_PAIRS)


def their_places(batch_size: int) -> Int:
    """Return the positions in open_clip_train: its pipeline on pair numbers, with the readers' batches in turns."""
    rng = random.Random(0)
    shards = list(range(NUM_SHARDS))
    rng.shuffle(shards)
    places = np.empty(NUM_SHARDS * SHARD_PAIRS, np.int64)
    share = batch_size // NUM_RANKS
    for rank in range(NUM_RANKS):
        for reader in range(NUM_READERS):
            order = np.fromiter(_buffered(shards[rank::NUM_RANKS][reader::NUM_READERS], rng), np.int64)
            batch, slot = np.divmod(np.arange(len(order)), share)
            places[order] = (batch * NUM_READERS + reader) * batch_size + rank * share + slot
    return places


def _buffered(shards: list[int], rng: random.Random) -> Iterator[int]:
    # like webdataset.filters._shuffle: reads two pairs for each one that it yields, until the buffer is full
    pairs = (shard * SHARD_PAIRS + row for shard in shards for row in range(SHARD_PAIRS))
    buffer: list[int] = []
    for pair in pairs:
        buffer.append(pair)
        if len(buffer) < BUFFER:
            buffer.extend(next_one for next_one in [next(pairs, None)] if next_one is not None)
        if len(buffer) >= BUFFER_START:
            yield _drawn(buffer, rng)
    while buffer:
        yield _drawn(buffer, rng)


def _drawn(buffer: list[int], rng: random.Random) -> int:
    at = int(rng.random() * len(buffer))
    buffer[at], buffer[-1] = buffer[-1], buffer[at]
    return buffer.pop()


def row(name: str, places: Int, batch_size: int) -> str:
    """Return the Markdown row of an order."""
    in_shards = places.reshape(NUM_SHARDS, SHARD_PAIRS)
    apart = np.abs(np.diff(in_shards, axis=1)).ravel()
    together = np.mean(in_shards[:, 1:] // batch_size == in_shards[:, :-1] // batch_size)
    median, low = np.percentile(apart, [50, 5]) / len(places)
    batch_and_shard = places // batch_size * NUM_SHARDS + np.repeat(np.arange(NUM_SHARDS), SHARD_PAIRS)
    whole = len(places) // batch_size
    distinct = np.bincount(np.unique(batch_and_shard) // NUM_SHARDS)[:whole]
    return f"| {name} | {together:.1%} | {median:.2%} | {low:.3%} | {np.median(distinct):,.0f} | {distinct.min():,} |"


def pairs_per_second(order: SampleOrder, steps: list[int]) -> float:
    """Return how many pairs a second of processor time orders, for the batches of these steps, with empty caches."""
    sample_order._permutation.cache_clear()
    sample_order._part_order.cache_clear()
    started = time.process_time()
    for step in steps:
        order.batch(step)
    return len(steps) * order.global_batch_size / (time.process_time() - started)


def mixing(windows: list[int]) -> None:
    """Print the table of distances and the speed of ordering."""
    settings = TrainingConfig()
    print(
        "| order | neighbours in one batch | distance, median | 5th percentile | shards per batch, median | minimum |\n"
        "|---|---|---|---|---|---|"
    )
    for window in windows:
        name = f"ours, {settings.lanes} lanes, windows of {window:,}"
        print(row(name, our_places(made_up_stream(window)), settings.global_batch_size), flush=True)
    batch_size = settings.global_batch_size
    print(row("open_clip_train, buffers of 5,000", their_places(batch_size), batch_size), flush=True)
    print(row("full shuffle", full_places(), batch_size))
    order = made_up_stream(settings.window)
    one_by_one = pairs_per_second(order, list(range(TIMED_STEPS)))
    scattered = np.random.default_rng(0).choice(order.num_steps - 1, TIMED_STEPS, replace=False).tolist()
    print(
        f"\nSpeed of ordering a batch, in processor time: {one_by_one / 1e6:,.1f} M pairs/s for consecutive steps, "
        f"{pairs_per_second(order, scattered) / 1e6:,.1f} M pairs/s for random steps"
    )


def trained(out: Path, samples: int, seeds: list[int]) -> None:
    """Print the accuracy of models trained on sorted shards and on shuffled shards."""
    print("| shards | top-1 | top-5 | recall@1, text to image | recall@1, image to text |\n|---|---|---|---|---|")
    for name in ("sorted by source", "fully shuffled"):
        found = [_measures(_run(out, name, samples, seed)) for seed in seeds]
        print(f"| {name} | {' | '.join(_mean_and_spread(values) for values in zip(*found, strict=True))} |", flush=True)


def _run(out: Path, name: str, samples: int, seed: int) -> dict[str, Any]:
    folder = out / f"{name.split()[0]}-{samples}-{seed}"
    if not (folder / "report.json").exists():
        uri = _shards(out / f"shards-{name.split()[0]}-{seed}", is_sorted=name.startswith("sorted"), seed=seed)
        settings = [f"training.{key}={value}" for key, value in TRAINED_STREAM.items()]
        command = [
            *(sys.executable, "-m", "orchestrator", "run", "+exp=demo", "source=webdataset", f"source.uri='{uri}'"),
            *("selection.steps=[all]", "finetune.enabled=false", *settings, f"training.seed={seed}"),
            *(f"training.samples={samples}", f"out={folder}", f"store={out / 'store'}"),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "report.json").read_text())


def _shards(folder: Path, *, is_sorted: bool, seed: int) -> str:
    rows = pl.read_parquet(POOL_PATH / "train.parquet").sample(fraction=1.0, shuffle=True, seed=seed)
    rows = rows.sort("source", maintain_order=True) if is_sorted else rows
    folder.mkdir(parents=True, exist_ok=True)
    slices = list(rows.iter_slices(TRAINED_SHARD_PAIRS))
    for shard, pairs in enumerate(slices):
        write_shard(folder, shard, pairs.to_dicts())
    return f"{folder}/{{00000..{len(slices) - 1:05d}}}.tar"


def _measures(report: dict[str, Any]) -> list[float]:
    zero_shot, retrieval = (report["evaluation"]["pretrain"][name] for name in ("zero_shot", "retrieval"))
    recalls = [retrieval[f"{way}_recall_at_1"] for way in ("text_to_image", "image_to_text")]
    return [zero_shot["top1"], zero_shot["top5"], *recalls]


def _mean_and_spread(values: tuple[float, ...]) -> str:
    spread = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{spread}"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, nargs="+", default=[TrainingConfig().window, 8_192, 65_536])
    parser.add_argument("--train", action="store_true", help="train on sorted and on shuffled shards instead")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/shuffle"), help="with --train: folder for runs and store"
    )
    parser.add_argument("--samples", type=int, default=15_000, help="with --train: samples seen by each model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="with --train: one model per seed")
    arguments = parser.parse_args()
    if arguments.train:
        trained(arguments.out, arguments.samples, arguments.seeds)
    else:
        mixing(arguments.windows)


if __name__ == "__main__":
    main()
