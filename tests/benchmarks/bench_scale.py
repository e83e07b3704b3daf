"""Measure `select` as the pool grows, 1 : 10 : 100. Wall time may grow with the pairs; driver memory must not.

python tests/benchmarks/bench_scale.py --folder runs/scale --captions 1 10 100 --embeddings 0.1 1 10
python tests/benchmarks/bench_scale.py --folder runs/scale --captions 10 --part-rows 1000

`--captions` and `--embeddings` take millions of pairs. Caption pools are tables of Zipf-distributed words, pruned by
WFPP. Embedding pools have precomputed vectors in columns of Parquet files, matched by key, then clustered and pruned by
DBP. The generated pool is deleted after each size. A small `--part-rows` gives as many parts as a pool of tars has, and
shows what each part costs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_FILE = 1_000_000
GROUP_ROWS = 100_000
DIM, NUM_KINDS = 64, 300
POLL_SECONDS = 0.2
MIB = 2**20


@dataclass
class Peak:
    """Peak resident memory in bytes: of the driver, and of the largest other process of its cluster."""

    driver: int = 0
    worker: int = 0


def main() -> None:
    """Print one Markdown row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder on a disk with free space")
    parser.add_argument("--captions", type=float, nargs="*", default=[])
    parser.add_argument("--embeddings", type=float, nargs="*", default=[])
    parser.add_argument("--part-rows", type=int, default=ROWS_PER_FILE)
    asked = parser.parse_args()
    print("| pool | parts | `plan` estimate | wall | pairs/s | driver | largest worker | on disk | store | keep list |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for millions in asked.captions:
        row(asked.folder, round(millions * 1e6), asked.part_rows, "captions, WFPP", [], vectors=False)
    dbp = [
        "selection.steps=[dbp]",
        "selection.dbp.embedding=theirs",
        "selection.dbp.clustering.num_iterations=20",
        f"+embedding.theirs={{kind: columns, uri: {asked.folder / 'pool'}, match_by: key, match_column: key}}",
    ]
    for millions in asked.embeddings:
        by_key = ["source.key_column=key", *dbp]
        row(asked.folder, round(millions * 1e6), asked.part_rows, "embeddings, DBP", by_key, vectors=True)


def row(folder: Path, num_pairs: int, part_rows: int, what: str, overrides: Sequence[str], *, vectors: bool) -> None:
    """Generate a pool, prune it, and print time, memory and disk space."""
    pool, store = folder / "pool", folder / "STORE"
    pool.mkdir(parents=True)
    files = list(sizes(num_pairs))
    with ProcessPoolExecutor() as processes:
        list(processes.map(partial(write_file, pool, vectors, min(part_rows, GROUP_ROWS)), range(len(files)), files))
    settings = [f"source.uri={pool}", f"source.part_rows={part_rows}", f"out={folder / 'OUT'}", f"store={store}"]
    settings += overrides
    estimate = planned(settings)
    peak, seconds = peak_of_select(settings)
    mib = [peak.driver / MIB, peak.worker / MIB, bytes_of(pool) / MIB, bytes_of(store) / MIB]
    memory = " | ".join(f"{value:,.0f} MiB" for value in mib)
    speed = f"{seconds:,.0f} s | {num_pairs / seconds:,.0f}"
    keep, parts = bytes_of(store / "keep") / MIB, -(-num_pairs // min(part_rows, ROWS_PER_FILE))
    print(
        f"| {num_pairs / 1e6:g} M {what} | {parts:,} | {estimate} | {speed} | {memory} | {keep:,.1f} MiB |",
        flush=True,
    )
    for each in (pool, store, folder / "OUT"):
        shutil.rmtree(each)


def sizes(num_pairs: int) -> Iterator[int]:
    """Yield the number of rows of each file."""
    for first in range(0, num_pairs, ROWS_PER_FILE):
        yield min(ROWS_PER_FILE, num_pairs - first)


def write_file(pool: Path, vectors: bool, group_rows: int, number: int, num_rows: int) -> None:
    """Write a file of the pool: captions of 4 to 16 words, and vectors around `NUM_KINDS` directions."""
    rng = np.random.default_rng(number)
    columns = {"caption": captions(rng, num_rows)}
    if vectors:
        columns["key"] = pa.array([f"{number:05d}{index:08d}" for index in range(num_rows)])
        kinds = np.random.default_rng(0).standard_normal((NUM_KINDS, DIM))
        around = kinds[rng.integers(NUM_KINDS, size=num_rows)] + 0.7 * rng.standard_normal((num_rows, DIM))
        flat = pa.array(around.astype(np.float32).ravel())
        columns["image_embedding"] = pa.FixedSizeListArray.from_arrays(flat, DIM)
    pq.write_table(pa.table(columns), pool / f"{number:05d}.parquet", row_group_size=group_rows)


def captions(rng: np.random.Generator, num_rows: int) -> pa.Array:
    """Return captions of Zipf-distributed words of any rank. As in real text, more text has more distinct words."""
    lengths = rng.integers(4, 17, num_rows)
    ranks, drawn = np.unique(rng.zipf(1.2, lengths.sum()) - 1, return_inverse=True)
    words = np.array([f"{chr(97 + i % 26)}{np.base_repr(i, 26).lower()}" for i in ranks.tolist()], object)
    owner = pl.Series("row", np.repeat(np.arange(num_rows), lengths))
    table = pl.DataFrame({"row": owner, "caption": pl.Series(words[drawn])}).group_by("row", maintain_order=True)
    return table.agg(pl.col("caption").str.join(" "))["caption"].to_arrow()


def planned(overrides: Sequence[str]) -> str:
    """Return the wall time and the store size that `plan` estimates, as it prints them."""
    command = [sys.executable, "-m", "orchestrator", "plan", "+exp=wfpp", "source=table", *overrides]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("│ all ")]
    cells = [cell.strip() for cell in line.split("│")]
    return f"{cells[5]}, {cells[8]}"


def peak_of_select(overrides: Sequence[str]) -> tuple[Peak, float]:
    """Run `select`. Return its peak memory and its wall seconds."""
    command = [sys.executable, "-m", "orchestrator", "select", "+exp=wfpp", "source=table", *overrides]
    started, peak = time.monotonic(), Peak()
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process = psutil.Process(driver.pid)
    while driver.poll() is None:
        try:
            peak.driver = max(peak.driver, process.memory_info().rss)
            others = [own_bytes(one) for one in process.children(recursive=True)]
            peak.worker = max(peak.worker, *others, 0)
        except psutil.NoSuchProcess:
            pass
        time.sleep(POLL_SECONDS)
    if driver.returncode:
        raise SystemExit(f"select failed: {' '.join(command)}")
    return peak, time.monotonic() - started


def own_bytes(process: psutil.Process) -> int:
    """Return resident memory minus shared memory, because every process maps Ray's object store."""
    try:
        memory = process.memory_info()
        return memory.rss - memory.shared
    except psutil.NoSuchProcess:
        return 0


def bytes_of(folder: Path) -> int:
    """Return the total size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
