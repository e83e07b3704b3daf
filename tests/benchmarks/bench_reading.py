"""The memory that a reading task of training takes for one window of local tars, above what it has before.

python tests/benchmarks/bench_reading.py --folder runs/reading

Tables are dropped as they come, as Ray does with those it has put into its store; no Ray is started."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pools import Pair, write_catalog, write_tars

from orchestrator.config import AugmentationConfig
from orchestrator.keeplist import KeepList, Mask
from orchestrator.metering import peak_bytes
from orchestrator.source import WebDataset
from orchestrator.training.decoding import Decoding
from orchestrator.training.feed import Feed, read_window
from orchestrator.training.stream import Stream

TARS, ROWS, IMAGE_BYTES = 2, 10_000, 25_000
LANES, WINDOW = 20, 1_000


class EveryPair(KeepList):
    """Keeps all."""

    def mask(self, index: int, num_rows: int) -> Mask:
        """The whole part."""
        return np.ones(num_rows, bool)


def main() -> None:
    """Prints the highest resident memory, the seconds and the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    feed = feed_of(parser.parse_args().folder)
    sizes, before, started = [], peak_bytes(), time.monotonic()
    for table in read_window(feed, 0, rank=0, num_ranks=1, first_step=0):
        sizes.append(table["image"].nbytes)
    print(f"{TARS * ROWS:,} pairs, {sum(sizes) / 1e6:,.0f} MB of images in {len(sizes)} tables")
    print(f"{(peak_bytes() - before) / 1e6:,.0f} MB more at most, {time.monotonic() - started:.1f} s")


def feed_of(folder: Path) -> Feed:
    """A feed whose one window is every pair of tars of random bytes, in lanes that are shuffled."""
    if not (folder / "tars").exists():
        draw = np.random.default_rng(0)
        pairs = [Pair(f"{row:09d}", "a photo", draw.bytes(IMAGE_BYTES)) for row in range(TARS * ROWS)]
        write_tars(folder / "tars", pairs, num_shards=TARS)
        raise SystemExit("the tars are written: give the command again, in a process that has not held them")
    source = WebDataset.open(str(folder / "tars"))
    catalogued = [source.catalog(part).table for part in source.parts()]
    catalog = write_catalog(folder / "catalog", pa.concat_tables(catalogued).to_pylist(), [ROWS] * TARS)
    stream = Stream(
        kept_per_part=(ROWS,) * TARS,
        num_samples=TARS * ROWS,
        global_batch_size=LANES,
        num_lanes=LANES,
        window=WINDOW,
        seed=0,
    )
    decoding = Decoding(
        image_size=224,
        seed=0,
        decode_in="tasks",
        draft_decoding=True,
        max_image_pixels=10**8,
        augmentation=AugmentationConfig(),
    )
    return Feed(
        source=source,
        parts=tuple(source.parts()),
        catalog=catalog,
        keep=EveryPair(catalog.artifact),
        stream=stream,
        decoding=decoding,
    )


if __name__ == "__main__":
    main()
