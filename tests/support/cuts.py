"""A top-k threshold over parts, computed as in a selection step: histograms, ties and masks, part by part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.pruning.threshold import TopKThresholds, find_thresholds, keep_mask, share_ties

Keys = NDArray[np.uint64]
Ints = NDArray[np.int64]


def cut_parts(parts: Sequence[Keys], groups: Sequence[Ints], num_wanted: Ints) -> NDArray[np.bool_]:
    """Return a mask of the `num_wanted` [k] highest keys of each group: bool, all parts concatenated."""
    num_pairs = sum((np.bincount(group, minlength=len(num_wanted)) for group in groups), np.zeros_like(num_wanted))

    def total_histogram(cut: TopKThresholds) -> Ints:
        pairs = list(zip(parts, groups, strict=True))
        return sum((cut.histogram(*pair) for pair in reversed(pairs)), np.zeros(cut.shape, np.int64))

    cut = find_thresholds(total_histogram, num_pairs, num_wanted)
    ties = [cut.ties(keys, group) for keys, group in zip(parts, groups, strict=True)]
    part = np.repeat(np.arange(len(parts)), [len(group) for group, _ in ties])
    group, count = (np.concatenate(column) for column in zip(*ties, strict=True))
    allowed = share_ties(cut, part, group, count)
    return np.concatenate(
        [
            keep_mask(keys, of, cut, group[part == index], allowed[part == index])
            for index, (keys, of) in enumerate(zip(parts, groups, strict=True))
        ]
    )


def kept_by_sorting(keys: Keys, groups: Ints, num_wanted: Ints) -> NDArray[np.bool_]:
    """Return the mask of the definition: the highest keys of each group; equal keys by position."""
    keep = np.zeros(len(keys), dtype=bool)
    for group, wanted in enumerate(num_wanted.tolist()):
        order = sorted(np.flatnonzero(groups == group).tolist(), key=lambda position: (-int(keys[position]), position))
        keep[order[:wanted]] = True
    return keep
