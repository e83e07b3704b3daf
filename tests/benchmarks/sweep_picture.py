"""Draw several sweeps of one pool in one chart, metrics over pairs kept, and print the table for RESULTS.md.

python tests/benchmarks/sweep_picture.py --sweep WFPP=runs/wfpp --sweep DBP=runs/dbp --picture docs/sweeps.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from orchestrator import Sweep

METRICS = {"zero_shot/top1": "zero-shot top-1", "retrieval/text_to_image_recall_at_10": "text to image R@10"}
MODELS = {"pretrain": "pre-trained", "finetune": "after the fine-tune epoch"}
# colours of Okabe and Ito, which colour-blind people can distinguish
LOOKS = {"WFPP": ("#0072b2", "o", "-"), "DBP": ("#d55e00", "s", "-"), "random": ("#666666", "x", ":")}


def main() -> None:
    """Write the chart and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="append", required=True, help="NAME=FOLDER")
    parser.add_argument("--picture", type=Path, required=True)
    asked = parser.parse_args()
    points = spread(pl.concat([trials(*named.split("=", 1)) for named in asked.sweep]))
    print_rows(points)
    figure = Figure(figsize=(9, 6.4), layout="constrained", dpi=110)
    panels = figure.subplots(len(METRICS), len(MODELS), sharex=True, sharey="row")
    for across, (metric, title) in zip(panels, METRICS.items(), strict=True):
        for axes, (model, name) in zip(across, MODELS.items(), strict=True):
            draw(axes, points.filter(pl.col("model") == model), metric)
            axes.set_title(f"{title}, {name}", fontsize=10, loc="left")
    for axes in panels[-1]:
        axes.set_xlabel("pairs kept, of the pool")
    panels[0][0].legend(frameon=False, fontsize=9)
    figure.savefig(asked.picture)


def trials(name: str, folder: str) -> pl.DataFrame:
    """Return one row per model; `series` is the method or the control."""
    table = Sweep(folder).trials.filter(pl.col("state") == "finished")
    series = pl.col("control").fill_null(name).alias("series")
    return table.select(series, "seed", "model", "pairs", "kept_fraction", *METRICS)


def spread(table: pl.DataFrame) -> pl.DataFrame:
    """Return the mean and the standard deviation over seeds. A control of two sweeps counts once."""
    by = ["series", "model", "pairs"]
    table = table.unique([*by, "seed"], maintain_order=True)
    numbers = [pl.mean(name).name.suffix(" mean") for name in METRICS] + [
        pl.std(name).name.suffix(" std") for name in METRICS
    ]
    return table.group_by(by, maintain_order=True).agg(pl.first("kept_fraction"), pl.len().alias("seeds"), *numbers)


def draw(axes: Axes, points: pl.DataFrame, metric: str) -> None:
    """Draw a line for each method, and the full control as a horizontal line with its deviation."""
    for series, (colour, marker, line) in LOOKS.items():
        mine = points.filter(pl.col("series") == series).sort("kept_fraction")
        if mine.is_empty():
            continue
        axes.errorbar(
            mine["kept_fraction"],
            mine[f"{metric} mean"],
            yerr=mine[f"{metric} std"],
            color=colour,
            marker=marker,
            linestyle=line,
            capsize=2,
            label=series,
        )
    for mean, std in points.filter(pl.col("series") == "full").select(f"{metric} mean", f"{metric} std").iter_rows():
        axes.axhline(mean, color="black", linestyle="--", linewidth=1, label="every pair")
        axes.axhspan(mean - std, mean + std, color="black", alpha=0.07, linewidth=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def print_rows(points: pl.DataFrame) -> None:
    """Print the table, in percent."""
    titles = [f"{title}, {MODELS[model]}" for title in METRICS.values() for model in MODELS]
    print(f"| pairs | of the pool | chosen by | {' | '.join(titles)} |")
    print("|---" * (3 + len(titles)) + "|")
    for (series, pairs), rows in points.sort("series", "pairs").group_by(["series", "pairs"], maintain_order=True):
        cells = []
        for metric in METRICS:
            for model in MODELS:
                one = rows.filter(pl.col("model") == model).row(0, named=True)
                cells.append(f"{100 * one[f'{metric} mean']:.2f} ± {100 * one[f'{metric} std']:.2f}")
        print(f"| {pairs:,} | {rows['kept_fraction'][0]:.0%} | {series} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
