"""Compare actors with tasks for stages of a few parts: the time of a selection of seven steps over three parts.

The rounds alternate between the two, in one cluster with Ray's own processes and on empty stores. Only the setting
`TASKS_PER_ACTOR` differs. The script checks that both keep the same pairs.

    PYTHONPATH=. python tests/benchmarks/bench_few_parts.py --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl

from orchestrator.config import ClusterConfig
from orchestrator.data.keep_list import KeepList
from orchestrator.engine import parts
from orchestrator.engine.ray_cluster import connect
from orchestrator.selection import final_keep_list
from tests.support.report_runs import select

NUM_PAIRS, DIM, PART_ROWS = 3_000, 64, 1_000
GEOMETRY = {"embedding": "mine", "clustering": {"k": 10, "num_iterations": 5, "seed": 1}}
STEPS = {
    "wfpp": {"keep_fraction": 0.9, "min_count": 1},
    "semdedup": {**GEOMETRY, "eps": 0.05},
    "clip_score": {"embedding": "mine", "keep_fraction": 0.9},
    "ssp": {**GEOMETRY, "keep_fraction": 0.9},
    "easy": {"method": "ssp", **GEOMETRY, "keep_fraction": 0.9, "order": "easy"},
    "dbp": {**GEOMETRY, "keep_fraction": 0.6, "num_neighbours": 2},
    "random": {"keep_fraction": 0.9},
}


def write_pool(folder: Path) -> None:
    """Write captions, and random image and text vectors."""
    rng = np.random.default_rng(0)
    keys = [f"k{number:04d}" for number in range(NUM_PAIRS)]
    captions = [f"picture {number % 97} of {'red ' * (number % 5)}stars" for number in range(NUM_PAIRS)]
    (folder / "table").mkdir()
    pl.DataFrame({"key": keys, "caption": captions}).write_parquet(folder / "table" / "0.parquet")
    image, text = (rng.standard_normal((NUM_PAIRS, DIM), dtype=np.float32) for _ in range(2))
    vectors = {"key": keys, "image_embedding": image.tolist(), "text_embedding": text.tolist()}
    pl.DataFrame(vectors).write_parquet(folder / "vectors.parquet")


def timed(pool: Path, tasks_per_actor: int) -> tuple[float, list[bytes]]:
    """Return the seconds of a whole `select` on an empty store, and the masks of its keep list."""
    source = {"format": "table", "uri": str(pool / "table"), "key_column": "key", "part_rows": PART_ROWS}
    mine = {"kind": "columns", "uri": str(pool / "vectors.parquet"), "text_column": "text_embedding"}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(parts, "TASKS_PER_ACTOR", tasks_per_actor),
    ):
        started = time.perf_counter()
        record = select(source, {"steps": list(STEPS), **STEPS}, Path(folder), embedding={"mine": mine})
        seconds = time.perf_counter() - started
        kept = final_keep_list(record)
        assert kept is not None
        return seconds, [KeepList(kept).mask(part, PART_ROWS).tobytes() for part in range(NUM_PAIRS // PART_ROWS)]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    connect(ClusterConfig())
    with tempfile.TemporaryDirectory() as folder:
        write_pool(Path(folder))
        # the first run starts processes and loads libraries for all later ones
        _, expected = timed(Path(folder), parts.TASKS_PER_ACTOR)
        ways = {"actors": 0, "tasks": parts.TASKS_PER_ACTOR}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, tasks_per_actor in ways.items():
                took, masks = timed(Path(folder), tasks_per_actor)
                assert masks == expected, name
                seconds[name].append(took)
    print("\n| | seconds of each round | ratio of the medians |\n|---|---|---|")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"| {name} | {', '.join(f'{value:.1f}' for value in values)} | {medians[name] / medians['actors']:.2f} |")


if __name__ == "__main__":
    main()
