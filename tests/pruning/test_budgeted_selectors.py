"""One property check over every budgeted selector: exact budget, unique, deterministic, independent of partitioning."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from cuts import cut_parts
from numpy.typing import NDArray

from orchestrator.pruning.cut import budget, sortable
from orchestrator.pruning.random import random_scores
from orchestrator.pruning.wfpp import WordTable, count_words, discard_probabilities, merge_counts, scores
from orchestrator.pruning.words import caption_words

Keys = list[NDArray[np.uint64]]
KeysOf = Callable[[list[pl.Series], int], Keys]


def wfpp_keys(parts: list[pl.Series], seed: int) -> Keys:
    words = [caption_words(part) for part in parts]
    counts = merge_counts([count_words(part) for part in words]).filter(pl.col("count") >= 5)
    table = WordTable.from_probabilities(discard_probabilities(counts, int(counts["count"].sum()), t=1e-7))
    return [sortable(scores(part, table)) for part in words]


def random_keys(parts: list[pl.Series], seed: int) -> Keys:
    first_ordinals = np.cumsum([0, *map(len, parts)])
    return [random_scores(seed, int(first), len(part)) for first, part in zip(first_ordinals, parts, strict=False)]


SELECTORS: dict[str, KeysOf] = {"wfpp": wfpp_keys, "random": random_keys}


def split(captions: pl.Series, num_parts: int) -> list[pl.Series]:
    """Parts of very different sizes, some of them empty."""
    bounds = np.sort(np.random.default_rng(num_parts).integers(0, len(captions), num_parts - 1))
    bounds = np.concatenate([[0], bounds, bounds[-1:], [len(captions)]])
    return [captions[int(start) : int(end)] for start, end in itertools.pairwise(bounds)]


def select(keys_of: KeysOf, parts: list[pl.Series], num_kept: int, seed: int) -> NDArray[np.bool_]:
    keys = keys_of(parts, seed)
    return cut_parts(keys, [np.zeros(len(part), np.int64) for part in keys], np.array([num_kept]))


@pytest.mark.parametrize("keep_fraction", [0.001, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("name", SELECTORS)
def test_properties(demo_captions: pl.Series, name: str, keep_fraction: float) -> None:
    repeated = pl.concat([demo_captions.head(2000)] * 3 + [pl.Series([None, ""] * 200)])
    num_kept = budget(len(repeated), keep_fraction)
    whole = select(SELECTORS[name], [repeated], num_kept, seed=5)
    assert len(whole) == len(repeated)
    assert whole.sum() == num_kept
    for num_parts in (7, 100):
        np.testing.assert_array_equal(select(SELECTORS[name], split(repeated, num_parts), num_kept, seed=5), whole)
    np.testing.assert_array_equal(select(SELECTORS[name], [repeated], num_kept, seed=5), whole)
    if name == "random" and keep_fraction < 1:
        assert (select(SELECTORS[name], [repeated], num_kept, seed=6) != whole).any()


def test_wfpp_keeps_the_earlier_of_equal_captions_and_prunes_empty_ones_first(demo_captions: pl.Series) -> None:
    half = demo_captions.head(1000)
    captions = pl.concat([pl.Series([None, "", " "]), half, half])
    odd = 1401  # so at least one caption keeps a single one of its two copies
    keep = select(wfpp_keys, split(captions, 7), odd, seed=0)
    assert not keep[:3].any()
    first, second = keep[3:1003], keep[1003:]
    assert (first >= second).all(), "a later copy is never kept instead of an earlier one"
    assert (first & ~second).any()
    everything_but_the_empty = select(wfpp_keys, [captions], 2000, seed=0)
    np.testing.assert_array_equal(everything_but_the_empty, np.arange(2003) >= 3)
