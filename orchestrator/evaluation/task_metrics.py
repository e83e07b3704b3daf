"""A task's numbers under the names that DataComp and clip_benchmark give them, all in [0, 1].

`acc1`, `acc5` and `mean_per_class_recall` as clip_benchmark defines them; `F1-macro_all`, over the classes that have a
picture, and the accuracy of the worst group, `acc_wg`, `acc_top5_wg` and `acc_worst_region`, as WILDS does (Koh et al.
2021). The average over tasks is the mean of their main metrics, as in DataComp's `aggregate_scores.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import TaskConfig

# with fewer classes the five nearest say nothing
MIN_CLASSES_FOR_TOP5 = 5
OVERALL = "all tasks"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What came of n pictures: int64 [n] `labels`, `predictions` and `groups` (-1: none told), bool [n] `top5`, whether
    the label is among the five nearest."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    top5: NDArray[np.bool_]
    groups: NDArray[np.int64]


def classification_metrics(judged: Judged, *, num_classes: int, metric: str) -> dict[str, float]:
    """`acc1`, `acc5` (of five classes and more), `mean_per_class_recall`, and the task's main metric.

    Errors: `ValueError` for no pictures, or for one without a group where the metric goes by groups."""
    if not len(judged.labels):
        raise ValueError("the set has no picture that can be decoded")
    hits = judged.predictions == judged.labels
    num_images, num_predicted, num_hits = (
        np.bincount(which, minlength=num_classes) for which in (judged.labels, judged.predictions, judged.labels[hits])
    )
    present = num_images > 0
    found = {"acc1": hits.mean()}
    if num_classes >= MIN_CLASSES_FOR_TOP5:
        found["acc5"] = judged.top5.mean()
    found["mean_per_class_recall"] = (num_hits[present] / num_images[present]).mean()
    if metric == "F1-macro_all":
        found[metric] = (2 * num_hits[present] / (num_images + num_predicted)[present]).mean()
    elif metric not in found:
        found[metric] = worst_group(judged.top5 if metric == "acc_top5_wg" else hits, judged.groups)
    return {name: float(value) for name, value in found.items()}


def worst_group(hits: NDArray[np.bool_], groups: NDArray[np.int64]) -> float:
    """The lowest share of hits among the groups, bool [n] and int64 [n]. Errors: `ValueError` for a missing group."""
    if (groups < 0).any():
        raise ValueError(f"{(groups < 0).sum()} of {len(groups)} pictures have no group, expected one in each npy")
    num_images, num_hits = np.bincount(groups), np.bincount(groups[hits], minlength=groups.max() + 1)
    return float((num_hits[num_images > 0] / num_images[num_images > 0]).min())


def averages(tasks: Mapping[str, TaskConfig], values: Mapping[str, float]) -> list[dict[str, Any]]:
    """The mean of the main metrics in each group of tasks, then over all: `name`, `value` (null without any), and how
    many are `measured`, `of` how many."""
    groups = dict.fromkeys(config.group for config in tasks.values() if config.group is not None)
    rows = []
    for group in (*groups, None):
        members = [key for key, config in tasks.items() if group in (None, config.group)]
        measured = [values[key] for key in members if key in values]
        rows.append(
            {
                "name": group or OVERALL,
                "value": float(np.mean(measured)) if measured else None,
                "measured": len(measured),
                "of": len(members),
            }
        )
    return rows
