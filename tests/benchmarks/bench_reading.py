"""Measure the memory of a reading task: the increase of resident memory for one window of local tars.

PYTHONPATH=. python tests/benchmarks/bench_reading.py --folder runs/reading

The first run writes the tars. The second run measures. Tables are dropped as they arrive, as Ray drops a table that it
has put into its object store. Ray itself does not start."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from orchestrator.data.keep_list import KeepList, Mask
from orchestrator.engine.metering import peak_bytes
from orchestrator.source import WebDataset
from orchestrator.training.reader import ReaderInputs, read_window
from tests.support.pools import Pair, write_tars
from tests.support.reader_inputs import reader_inputs

TARS, ROWS, IMAGE_BYTES = 2, 10_000, 25_000
LANES, WINDOW = 20, 1_000


class EveryPair(KeepList):
    """A keep list that keeps every pair."""

    def mask(self, index: int, num_rows: int) -> Mask:
        """Return a mask that is true for the whole part."""
        return np.ones(num_rows, bool)


def main() -> None:
    """Print the increase of resident memory, the time and the number of tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    inputs = inputs_of(parser.parse_args().folder)
    sizes, before, started = [], peak_bytes(), time.monotonic()
    for table in read_window(inputs, 0, rank=0, num_ranks=1, first_step=0):
        sizes.append(table["image"].nbytes)
    print(f"{TARS * ROWS:,} pairs, {sum(sizes) / 1e6:,.0f} MB of images in {len(sizes)} tables")
    print(f"{(peak_bytes() - before) / 1e6:,.0f} MB more memory at the peak, {time.monotonic() - started:.1f} s")


def inputs_of(folder: Path) -> ReaderInputs:
    """Return a inputs with one window: every pair of tars of random bytes, in shuffled lanes."""
    if not (folder / "tars").exists():
        draw = np.random.default_rng(0)
        pairs = [Pair(f"{row:09d}", "a photo", draw.bytes(IMAGE_BYTES)) for row in range(TARS * ROWS)]
        write_tars(folder / "tars", pairs, num_shards=TARS)
        raise SystemExit("the tars are written: run the command again to measure in a new process")
    source = WebDataset.open(str(folder / "tars"))
    return reader_inputs(source, folder / "catalog", EveryPair, epochs=1, batch=LANES, lanes=LANES, window=WINDOW)


if __name__ == "__main__":
    main()
