"""Measure the cost of checkpoints: samples/s of pre-training with a checkpoint every N steps, and with none, in turns.

python tests/benchmarks/bench_checkpoints.py --every 50 --epochs 4 --rounds 2
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks.bench_training import orchestrated

NEVER = 1_000_000


def main() -> None:
    """Print one Markdown row per round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="more settings of the run, such as model=vit_b_32")
    asked = parser.parse_args()
    for number in range(asked.rounds):
        # the order alternates, so that a drift of the machine affects both
        order = [asked.every, NEVER][:: 1 if number % 2 else -1]
        rates = {}
        for every in order:
            with tempfile.TemporaryDirectory() as folder:
                settings = [f"training.epochs={asked.epochs}", f"training.checkpoint_every_steps={every}"]
                rates[every] = orchestrated(Path(folder), [*settings, *asked.overrides]).samples_per_second
        ratio = rates[asked.every] / rates[NEVER]
        print(
            f"| every {asked.every} steps | {rates[asked.every]:,.0f} | {rates[NEVER]:,.0f} | {ratio:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
