"""Measure what shared artifacts save: the wall time of a sweep and of the same runs one by one, without a shared store.

python tests/benchmarks/bench_sweep.py --out runs/bench_sweep --keep 0.3 0.7 --clusters 20 100 --samples 6400
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

COMMON = ("training.num_workers=1", "cluster.num_cpus=6", "finetune.enabled=false")


def main() -> None:
    """Print a Markdown table of one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.3, 0.7])
    parser.add_argument("--clusters", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--samples", type=int, default=6_400, help="samples of each pre-training")
    asked = parser.parse_args()
    together = seconds_of("sweep", *sweep_settings(asked), *places(asked.out / "sweep"))
    apart = 0.0
    for number, (keep, clusters) in enumerate(product(asked.keep, asked.clusters)):
        settings = (f"selection.dbp.keep_fraction={keep}", f"selection.dbp.clustering.k={clusters}")
        apart += seconds_of("run", f"training.samples={asked.samples}", *settings, *places(asked.out / f"run{number}"))
    sharing = json.loads((asked.out / "sweep" / "OUT" / "sweep.json").read_text())["sharing"]
    embedded = next(one for one in sharing if one["kind"] == "embedding")
    trials = len(asked.keep) * len(asked.clusters)
    print("| trials | embeddings computed | sweep | one by one | ratio |\n|---|---|---|---|---|")
    print(f"| {trials} | {embedded['computed']} for {embedded['needed']} | {together:.0f} s | {apart:.0f} s ", end="")
    print(f"| {apart / together:.2f} |")


def sweep_settings(asked: argparse.Namespace) -> tuple[str, ...]:
    """Return the overrides that set the search space, without controls."""
    return (
        f"sweep.space.keep_fraction.grid={asked.keep}".replace(" ", ""),
        f"sweep.space.num_clusters.grid={asked.clusters}".replace(" ", ""),
        f"sweep.samples={asked.samples}",
        *("sweep.controls.full=false", "sweep.controls.random=false"),
    )


def places(folder: Path) -> tuple[str, str]:
    """Return overrides that give a command its own output folder and store."""
    return f"out={folder / 'OUT'}", f"store={folder / 'STORE'}"


def seconds_of(verb: str, *overrides: str) -> float:
    """Run a command. Return its wall seconds."""
    command = [sys.executable, "-m", "orchestrator", verb, "+exp=demo_sweep", *COMMON, *overrides]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
