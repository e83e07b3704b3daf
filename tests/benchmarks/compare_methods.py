"""Compare the zero-shot accuracy of pruning methods on the embedded pool, at equal pairs and equal samples seen.

Each row is one complete `run` per seed, without a fine-tune epoch. A seed sets the random choice, the clustering and
the training. Finished runs are not repeated. The table shows the mean and the standard deviation over the seeds.

    python tests/benchmarks/compare_methods.py --out runs/compare --samples 40000 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROWS = {
    "all pairs": ["all"],
    "random": ["random"],
    "WFPP": ["wfpp"],
    "SSP": ["ssp"],
    "DBP": ["dbp"],
    "SemDeDup, random": ["semdedup", "random"],
    "SemDeDup, WFPP": ["semdedup", "wfpp"],
    "SemDeDup, SSP": ["semdedup", "ssp"],
    "SemDeDup, DBP": ["semdedup", "dbp"],
}
CLUSTERED = ("semdedup", "ssp", "dbp")


def main() -> None:
    """Print one Markdown row per list of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and their store")
    parser.add_argument("--samples", type=int, default=40_000, help="samples seen by each model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    for seed in arguments.seeds:
        for name, steps in ROWS.items():
            reports[name].append(run(arguments.out, name, steps, arguments.samples, seed))
    print("| steps | pairs | top-1 | top-5 | recall@1, text to image |\n|---|---|---|---|---|")
    for name, found in reports.items():
        num_pairs = found[0]["training"]["pretrain"]["pairs"]
        print(f"| {name} | {num_pairs:,} | {' | '.join(map(mean_and_spread, measures(found)))} |")


def run(out: Path, name: str, steps: list[str], samples: int, seed: int) -> dict[str, Any]:
    """Return the report of a run; run it first if there is none."""
    folder = out / f"{'-'.join(steps)}-{samples}-{seed}"
    if not (folder / "report.json").exists():
        seeds = [f"selection.{step}.clustering.seed={seed}" for step in CLUSTERED]
        command = [
            *(sys.executable, "-m", "orchestrator", "run", "+exp=dbp_demo", "finetune.enabled=false"),
            *(f"selection.steps=[{','.join(steps)}]", f"selection.random.seed={seed}", *seeds),
            *(f"training.seed={seed}", f"training.samples={samples}", f"out={folder}", f"store={out / 'store'}"),
        ]
        print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "report.json").read_text())


def measures(reports: list[dict[str, Any]]) -> list[list[float]]:
    """Return top-1, top-5 and recall@1 of each report."""
    models = [report["evaluation"]["pretrain"] for report in reports]
    return [
        [model["zero_shot"]["top1"] for model in models],
        [model["zero_shot"]["top5"] for model in models],
        [model["retrieval"]["text_to_image_recall_at_1"] for model in models],
    ]


def mean_and_spread(values: list[float]) -> str:
    """Format the mean and the standard deviation as percentages."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1%} ± {spread:.1%}".replace("%", "", 1)


if __name__ == "__main__":
    main()
