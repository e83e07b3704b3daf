"""Peak memory of the driver while `select` prunes caption tables of growing size: it must stay flat.

python tests/benchmarks/bench_driver_memory.py --millions 1 4 16
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pyarrow.parquet as pq

ROWS_PER_FILE = 1_000_000
VOCABULARY = 200_000
POLL_SECONDS = 0.05


def write_captions(folder: Path, num_millions: int) -> None:
    """Captions of 4 to 16 words, Zipf-distributed as in real text, a million to a file."""
    folder.mkdir(parents=True)
    words = np.array([f"{chr(97 + i % 26)}{np.base_repr(i, 26).lower()}" for i in range(VOCABULARY)], object)
    for number in range(num_millions):
        rng = np.random.default_rng(number)
        lengths = rng.integers(4, 17, ROWS_PER_FILE)
        drawn = np.minimum(rng.zipf(1.2, lengths.sum()) - 1, VOCABULARY - 1)
        flat = pl.Series("caption", words[drawn])
        owner = pl.Series("row", np.repeat(np.arange(ROWS_PER_FILE), lengths))
        captions = (
            pl.DataFrame({"row": owner, "caption": flat})
            .group_by("row", maintain_order=True)
            .agg(pl.col("caption").str.join(" "))
        )
        pq.write_table(captions.select("caption").to_arrow(), folder / f"{number:05d}.parquet")


def peak_of_select(captions: Path, scratch: Path) -> tuple[float, float]:
    """Peak resident memory of the driver alone in MiB, and the wall seconds."""
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "select",
        "+exp=wfpp",
        "source=table",
        f"source.uri={captions}",
        f"out={scratch / 'out'}",
        f"store={scratch / 'store'}",
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process, peak = psutil.Process(driver.pid), 0
    while driver.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(POLL_SECONDS)
    if driver.wait() != 0:
        raise SystemExit(f"select failed on {captions}")
    return peak / 2**20, time.monotonic() - started


def main() -> None:
    """Prints a Markdown row for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 4, 16])
    first = None
    for millions in parser.parse_args().millions:
        with tempfile.TemporaryDirectory() as scratch:
            write_captions(Path(scratch) / "captions", millions)
            peak, seconds = peak_of_select(Path(scratch) / "captions", Path(scratch))
        first = first or peak
        print(f"| {millions} M captions | {peak:,.0f} MiB | {peak / first:.2f} | {seconds:,.0f} s |", flush=True)


if __name__ == "__main__":
    main()
