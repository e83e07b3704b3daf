"""Measure DBP selection on made-up clusters and distances: time and peak memory of the driver as the pool grows.

python tests/benchmarks/bench_dbp.py --millions 1 10
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from orchestrator.clustering.train import FILE
from orchestrator.config import DbpStep
from orchestrator.pruning.clusters import unit
from orchestrator.selection.dbp import stages
from orchestrator.storage import files
from orchestrator.storage.npy import to_npy
from tests.benchmarks.synthetic import DISPLAY, sizes_of, synthetic_step, write_assigned

K, DIM, PAIRS_PER_PART = 500, 512, 10_000


def main() -> None:
    """Measure each size in a process, because peak memory is that of the whole process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--one", action="store_true", help="measure one size in this process")
    arguments = parser.parse_args()
    if arguments.one:
        measure(round(arguments.millions[0] * 1e6))
        return
    for size in arguments.millions:
        subprocess.run([sys.executable, __file__, "--one", "--millions", str(size)], check=True)


def measure(num_pairs: int) -> None:
    """Build the stages after the assignment, and print a Markdown row."""
    with tempfile.TemporaryDirectory() as folder:
        settings = DbpStep(embedding="none", keep_fraction=0.4)
        step = synthetic_step(folder, settings, sizes_of(num_pairs, PAIRS_PER_PART), DIM)
        sample, centroids, assign, *selection = stages(step)
        directions = np.random.default_rng(0).standard_normal((K, DIM)).astype(np.float32)
        files.write(centroids.artifact.path(FILE), to_npy(unit(directions)))
        for stage in (sample, centroids):
            stage.artifact.publish(totals={}, parts=[], seconds=0)
        write_assigned(assign.artifact, step, K)
        started = time.perf_counter()
        times = []
        for stage in selection:
            begin = time.perf_counter()
            stage.build(DISPLAY)
            times.append(f"{stage.name} {time.perf_counter() - begin:.1f} s")
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cells = [f"{num_pairs / 1e6:g} M", f"{seconds:.1f} s", f"{num_pairs / seconds:,.0f}", f"{peak:.0f} MiB"]
        print(f"| {' | '.join([*cells, ', '.join(times)])} |")


if __name__ == "__main__":
    main()
