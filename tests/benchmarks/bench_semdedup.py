"""Measure SemDeDup's comparison on one core: pairs/s and peak memory without the vectors, by cluster size.

    python tests/benchmarks/bench_semdedup.py

There are two references. One is the obvious implementation: X @ X.T, then the largest entry above the diagonal. The
other is one full float32 product of the vectors and a copy of them. (NumPy computes only one half of the product of a
matrix and itself.) The script checks that ours finds the same similarities as the obvious implementation. Each figure
comes from a separate process with one BLAS thread. Time is processor time, which other load on the machine hardly
changes. Peak memory is read from Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.semdedup import max_earlier_similarity

DIM = 512
SIZES = [1_000, 10_000, 30_000]
ALONE = 100_000
Vectors = NDArray[np.float32]


def ours(vectors: Vectors) -> Vectors:
    """Return the largest similarity of each vector to an earlier one, from float32 [n, d]."""
    return max_earlier_similarity(vectors)[0][1:]


def float16(vectors: Vectors) -> Vectors:
    """Do the same with the stored float16 vectors, widened tile by tile, as for very large clusters."""
    return max_earlier_similarity(vectors.astype(np.float16))[0][1:]


def obvious(vectors: Vectors) -> Vectors:
    """Do the same with the whole similarity matrix in memory."""
    return np.triu(vectors @ vectors.T, 1).max(axis=0)[1:]


def product(vectors: Vectors) -> Vectors:
    """Compute one full product and nothing else."""
    return (vectors @ vectors.copy().T)[0]


WAYS: dict[str, Callable[[Vectors], Vectors]] = {
    "ours": ours,
    "float16": float16,
    "obvious": obvious,
    "product": product,
}


def make_vectors(num_items: int) -> Vectors:
    """Return unit vectors, float32 [n, 512]. A tenth of them are near copies of others."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num_items, DIM), dtype=np.float32)
    vectors[: num_items // 10] += 5 * vectors[-(num_items // 10) :]
    vectors /= np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return vectors


def measure(way: str, num_items: int) -> None:
    """Print the seconds, the peak MiB without the vectors and the sum of the similarities, as JSON."""
    vectors = make_vectors(num_items)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    seconds = []
    for _ in range(max(1, min(20, 30_000 // num_items))):
        start = time.process_time()
        found = WAYS[way](vectors)
        seconds.append(time.process_time() - start)
    mib = (memory("VmHWM") - before) / 1024
    print(json.dumps({"seconds": min(seconds), "mib": mib, "sum": float(found.sum(dtype=np.float64))}))


def memory(field: str) -> int:
    """Return a memory field of this process's status, in KiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0])


def measured(way: str, num_items: int) -> dict[str, float]:
    """Run `measure` in a new process with one BLAS thread."""
    command = [sys.executable, __file__, "--measure", way, str(num_items)]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    answer: dict[str, float] = json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)
    return answer


def row(num_items: int, ways: list[str]) -> str:
    """Return the Markdown row of a cluster size."""
    found = {way: measured(way, num_items) for way in ways}
    pairs = num_items * (num_items - 1) / 2
    rates = {way: pairs / one["seconds"] for way, one in found.items()}
    cells = [f"{num_items:,}"]
    for way in WAYS:
        cells.append(f"{rates[way] / 1e6:,.0f} M, {found[way]['mib']:,.0f} MiB" if way in found else "-")
    if "obvious" in found:
        assert abs(found["ours"]["sum"] - found["obvious"]["sum"]) < 1e-5 * num_items
        cells += [f"{rates['ours'] / rates['product']:.2f}", f"{rates['ours'] / rates['obvious']:.2f}"]
    return f"| {' | '.join(cells + ['-'] * (7 - len(cells)))} |"


def main() -> None:
    """Print one Markdown row per cluster size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], int(arguments.measure[1]))
        return
    titles = ("items", "ours, pairs/s", "float16, tile by tile", "X @ X.T and its upper triangle", "one full product")
    print(f"| {' | '.join((*titles, 'ours / product', 'ours / triangle'))} |")
    print("|---|---|---|---|---|---|---|")
    for num_items in SIZES:
        print(row(num_items, list(WAYS)), flush=True)
    print(row(ALONE, ["ours"]))


if __name__ == "__main__":
    main()
