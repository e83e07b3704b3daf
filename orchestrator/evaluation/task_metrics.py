"""Metrics of benchmark tasks, named as in DataComp and clip_benchmark, all in [0, 1].

`acc1`, `acc5` and `mean_per_class_recall` are defined as in clip_benchmark. `F1-macro_all`, over the classes that have
images, and the accuracy of the worst group (`acc_wg`, `acc_top5_wg`, `acc_worst_region`) are defined as in WILDS (Koh
et al. 2021). The average over tasks is the mean of their main metrics, as in DataComp's `aggregate_scores.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import TaskConfig

# with fewer classes the five nearest always include the label
MIN_CLASSES_FOR_TOP5 = 5
OVERALL = "all tasks"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for n images: int64 [n] `labels`, `predicted` and `groups` (-1: no group); bool [n] `top5`, whether
    the label is among the five nearest classes."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    top5: NDArray[np.bool_]
    groups: NDArray[np.int64]


def classification_metrics(rows: Predictions, *, num_classes: int, metric: str) -> dict[str, float]:
    """Return `acc1`, `acc5` (with at least five classes), `mean_per_class_recall`, and the task's main metric.

    Errors: `ValueError` if there are no images, or an image has no group and the metric needs groups."""
    if not len(rows.labels):
        raise ValueError("the set has no image that can be decoded")
    hits = rows.predicted == rows.labels
    num_images, num_predicted, num_hits = (
        np.bincount(which, minlength=num_classes) for which in (rows.labels, rows.predicted, rows.labels[hits])
    )
    present = num_images > 0
    found = {"acc1": hits.mean()}
    if num_classes >= MIN_CLASSES_FOR_TOP5:
        found["acc5"] = rows.top5.mean()
    found["mean_per_class_recall"] = (num_hits[present] / num_images[present]).mean()
    if metric == "F1-macro_all":
        found[metric] = (2 * num_hits[present] / (num_images + num_predicted)[present]).mean()
    elif metric not in found:
        found[metric] = worst_group(rows.top5 if metric == "acc_top5_wg" else hits, rows.groups)
    return {name: float(value) for name, value in found.items()}


def worst_group(hits: NDArray[np.bool_], groups: NDArray[np.int64]) -> float:
    """Return the lowest hit rate of a group; bool [n] and int64 [n]. Errors: `ValueError` for a missing group."""
    if (groups < 0).any():
        raise ValueError(f"{(groups < 0).sum()} of {len(groups)} images have no group; expected one in each npy")
    num_images, num_hits = np.bincount(groups), np.bincount(groups[hits], minlength=groups.max() + 1)
    return float((num_hits[num_images > 0] / num_images[num_images > 0]).min())


def averages(tasks: Mapping[str, TaskConfig], values: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the mean of the main metrics for each group of tasks, then for all tasks.

    A row has `name`, `value` (None if no task is measured), the number of `measured` tasks, and `of`, the number of
    tasks in the list."""
    groups = dict.fromkeys(config.group for config in tasks.values() if config.group is not None)
    table = []
    for group in (*groups, None):
        members = [key for key, config in tasks.items() if group in (None, config.group)]
        measured = [values[key] for key in members if key in values]
        table.append(
            {
                "name": group or OVERALL,
                "value": float(np.mean(measured)) if measured else None,
                "measured": len(measured),
                "of": len(members),
            }
        )
    return table
