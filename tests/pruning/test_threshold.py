"""Compare the distributed top-k threshold with sorting all keys in one process."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from orchestrator.pruning.threshold import KEY_BITS, MAX_COUNTS, TopKThresholds, budget, find_thresholds, sortable
from tests.support.cuts import cut_parts, kept_by_sorting

Ints = NDArray[np.int64]


def kept_by_cut(keys: NDArray[np.uint64], num_kept: int, num_parts: int) -> NDArray[np.bool_]:
    parts = np.array_split(keys, num_parts)
    return cut_parts(parts, [np.zeros(len(part), np.int64) for part in parts], np.array([num_kept]))


def in_one_group(keys: NDArray[np.uint64], num_kept: int) -> NDArray[np.bool_]:
    return kept_by_sorting(keys, np.zeros(len(keys), np.int64), np.array([num_kept]))


def pools() -> dict[str, NDArray[np.uint64]]:
    rng = np.random.default_rng(0)
    top = 2**64 - 1
    return {
        "uniform": rng.integers(0, 2**64, 3000, dtype=np.uint64),
        "one digit differs": rng.integers(0, 40, 3000, dtype=np.uint64) << np.uint64(16),
        "last digit differs": np.uint64(7 << 60) + rng.integers(0, 3000, 3000, dtype=np.uint64),
        "all equal": np.full(500, 123456789012345, dtype=np.uint64),
        "extremes": rng.choice(np.array([0, 1, top - 1, top], dtype=np.uint64), 1000),
        "scores": sortable(np.round(rng.standard_normal(3000), 2)),
        "scores in float32": sortable(np.round(rng.standard_normal(3000), 2).astype(np.float32)),
        "many empty": sortable(np.where(rng.random(3000) < 0.7, -np.inf, rng.random(3000))),
        "one": np.array([5], dtype=np.uint64),
        "none": np.array([], dtype=np.uint64),
    }


@pytest.mark.parametrize("num_parts", [1, 7, 100])
@pytest.mark.parametrize("name", pools())
def test_the_threshold_keeps_the_same_as_sorting(name: str, num_parts: int) -> None:
    keys = pools()[name]
    for num_kept in sorted({0, min(1, len(keys)), len(keys) // 3, len(keys) // 2, max(len(keys) - 1, 0), len(keys)}):
        found = kept_by_cut(keys, num_kept, num_parts)
        np.testing.assert_array_equal(found, in_one_group(keys, num_kept))


def test_every_budget_of_a_pool_with_ties() -> None:
    keys = np.random.default_rng(1).integers(0, 5, 60, dtype=np.uint64) << np.uint64(40)
    for num_kept in range(61):
        np.testing.assert_array_equal(kept_by_cut(keys, num_kept, 7), in_one_group(keys, num_kept))


@pytest.mark.parametrize("num_groups", [2, 30, 500, 20_000])
@pytest.mark.parametrize("name", pools())
def test_each_group_keeps_the_same_as_sorting_it(name: str, num_groups: int) -> None:
    """Includes more groups than keys, where most groups are empty."""
    rng = np.random.default_rng(num_groups)
    keys = pools()[name]
    groups = (num_groups * rng.random(len(keys)) ** 3).astype(np.int64)
    num_wanted = (np.bincount(groups, minlength=num_groups) * rng.choice([0, 0.3, 0.9, 1], num_groups)).astype(np.int64)
    bounds = np.sort(rng.integers(0, len(keys) + 1, 6))
    found = cut_parts(np.split(keys, bounds), np.split(groups, bounds), num_wanted)
    np.testing.assert_array_equal(np.bincount(groups[found], minlength=num_groups), num_wanted)
    np.testing.assert_array_equal(found, kept_by_sorting(keys, groups, num_wanted))


@settings(deadline=None)
@given(data=st.data(), num_groups=st.integers(1, 5), num_parts=st.integers(1, 4))
def test_any_keys_groups_and_budgets_keep_the_same_as_sorting(
    data: st.DataObject, num_groups: int, num_parts: int
) -> None:
    num_keys = data.draw(st.integers(0, 20))
    few = st.sampled_from([0, 1, 2**16, 2**48, 2**63, 2**64 - 1])
    keys = data.draw(hnp.arrays(np.uint64, num_keys, elements=few))
    groups = data.draw(hnp.arrays(np.int64, num_keys, elements=st.integers(0, num_groups - 1)))
    sizes = np.bincount(groups, minlength=num_groups).tolist()
    num_wanted = np.array(data.draw(st.tuples(*(st.integers(0, size) for size in sizes))), np.int64)
    found = cut_parts(np.array_split(keys, num_parts), np.array_split(groups, num_parts), num_wanted)
    np.testing.assert_array_equal(found, kept_by_sorting(keys, groups, num_wanted))


def test_refinement_stops_when_nothing_is_undecided() -> None:
    keys = np.arange(100, dtype=np.uint64) << np.uint64(48)
    start = TopKThresholds.start(np.array([100]), np.array([30]))
    first = start.refine(start.histogram(keys))
    assert first.decided
    assert first.num_bits == 16
    equal = np.full(10, 3, dtype=np.uint64)
    rounds: list[int] = []

    def histogram(cut: TopKThresholds) -> Ints:
        rounds.append(cut.num_bits)
        return cut.histogram(equal)

    assert find_thresholds(histogram, np.array([10]), np.array([5])).num_bits == KEY_BITS
    assert rounds == [0, 16, 32, 48]
    assert find_thresholds(histogram, np.array([10]), np.array([10])).decided
    assert find_thresholds(histogram, np.array([10]), np.array([0])).decided
    assert len(rounds) == 4, "a budget of all or nothing needs no pass"


def test_decided_groups_are_not_counted_again() -> None:
    keys = np.concatenate([np.arange(8, dtype=np.uint64) << np.uint64(61), np.full(8, 5, np.uint64)])
    groups = np.repeat(np.array([2, 0]), 8)
    start = TopKThresholds.start(np.array([8, 0, 8]), np.array([4, 0, 4]))
    assert start.undecided.tolist() == [0, 2]
    assert start.refine(start.histogram(keys, groups)).undecided.tolist() == [0]


@pytest.mark.parametrize("num_groups", [1, 16, 17, 500, 50_000, 200_000])
def test_the_size_of_a_rounds_histogram_is_bounded(num_groups: int) -> None:
    each = np.full(num_groups, 2)
    cut, rounds = TopKThresholds.start(each, each // 2), 0
    keys, groups = np.full(num_groups, 3, np.uint64), np.arange(num_groups)
    while not cut.decided:
        assert math.prod(cut.shape) <= MAX_COUNTS
        cut, rounds = cut.refine(2 * cut.histogram(keys, groups)), rounds + 1
    np.testing.assert_array_equal(cut.thresholds, keys)
    assert rounds == {1: 4, 16: 4, 17: 5, 500: 6, 50_000: 16, 200_000: 32}[num_groups]


ORDERED = [-np.inf, -1.7e308, -2.5, -1.0, -5e-324, 0.0, 5e-324, 1e-9, 1.0, 1.0 + 2**-52, 1.7e308, np.inf]
ORDERED_32 = [-np.inf, -3.4e38, -2.5, -1.0, -1e-45, 0.0, 1e-45, 1e-9, 1.0, 1.0 + 2**-23, 3.4e38, np.inf]


@pytest.mark.parametrize("ordered", [np.array(ORDERED), np.array(ORDERED_32, np.float32)], ids=["float64", "float32"])
def test_sortable_keys_have_the_order_of_the_scores(ordered: NDArray[np.float64]) -> None:
    keys = sortable(ordered)
    assert keys.dtype == np.uint64
    assert all(int(low) < int(high) for low, high in itertools.pairwise(keys))
    assert sortable(-np.zeros(1, ordered.dtype)) == sortable(np.zeros(1, ordered.dtype))
    values = np.random.default_rng(2).standard_normal(10_000).astype(ordered.dtype)
    np.testing.assert_array_equal(np.argsort(sortable(values), kind="stable"), np.argsort(values, kind="stable"))


def test_sortable_keys_of_float32_have_zero_lower_bits() -> None:
    assert not (sortable(np.array(ORDERED_32, np.float32)) & np.uint64(2**32 - 1)).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sortable_refuses_nan(dtype: type[np.floating]) -> None:
    with pytest.raises(ValueError, match="1 are NaN, the first at position 2"):
        sortable(np.array([0.0, -np.inf, np.nan], dtype))


@pytest.mark.parametrize("keep_fraction", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_a_keep_fraction_outside_its_range_is_an_error(keep_fraction: float) -> None:
    with pytest.raises(ValueError, match=r"keep_fraction .* lies in \(0, 1\]"):
        budget(10, keep_fraction)


def test_budget_rounds_down() -> None:
    assert [budget(10, fraction) for fraction in (0.25, 0.5, 0.99, 1.0)] == [2, 5, 9, 10]
    assert budget(1, 0.5) == 0
