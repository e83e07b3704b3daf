"""The distributed cut against sorting everything in one place."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.pruning.cut import NUM_DIGITS, Cut, budget, find_cut, keep_mask, sortable


def kept_by_sorting(keys: NDArray[np.uint64], num_kept: int) -> NDArray[np.bool_]:
    """Highest keys first, equal ones by position."""
    order = sorted(range(len(keys)), key=lambda position: (-int(keys[position]), position))
    keep = np.zeros(len(keys), dtype=bool)
    keep[order[:num_kept]] = True
    return keep


def kept_by_cut(keys: NDArray[np.uint64], num_kept: int, num_parts: int) -> NDArray[np.bool_]:
    parts = np.array_split(keys, num_parts)
    cut = find_cut(lambda cut: sum(cut.histogram(part) for part in reversed(parts)), len(keys), num_kept)
    shares = cut.share_ties(np.array([cut.num_ties(part) for part in parts]))
    return np.concatenate(
        [keep_mask(part, cut.threshold, int(share)) for part, share in zip(parts, shares, strict=True)]
    )


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
        "many empty": sortable(np.where(rng.random(3000) < 0.7, -np.inf, rng.random(3000))),
        "one": np.array([5], dtype=np.uint64),
        "none": np.array([], dtype=np.uint64),
    }


@pytest.mark.parametrize("num_parts", [1, 7, 100])
@pytest.mark.parametrize("name", pools())
def test_keeps_what_sorting_keeps(name: str, num_parts: int) -> None:
    keys = pools()[name]
    for num_kept in sorted({0, min(1, len(keys)), len(keys) // 3, len(keys) // 2, max(len(keys) - 1, 0), len(keys)}):
        found = kept_by_cut(keys, num_kept, num_parts)
        np.testing.assert_array_equal(found, kept_by_sorting(keys, num_kept))


def test_every_budget_of_a_pool_of_ties() -> None:
    keys = np.random.default_rng(1).integers(0, 5, 60, dtype=np.uint64) << np.uint64(40)
    for num_kept in range(61):
        np.testing.assert_array_equal(kept_by_cut(keys, num_kept, 7), kept_by_sorting(keys, num_kept))


def test_stops_as_soon_as_nothing_is_undecided() -> None:
    keys = np.arange(100, dtype=np.uint64) << np.uint64(48)
    first = Cut.start(100, 30).refine(Cut.start(100, 30).histogram(keys))
    assert first.decided
    assert first.num_digits == 1
    equal = np.full(10, 3, dtype=np.uint64)
    rounds: list[int] = []

    def histogram(cut: Cut) -> NDArray[np.int64]:
        rounds.append(cut.num_digits)
        return cut.histogram(equal)

    assert find_cut(histogram, 10, 5).num_digits == NUM_DIGITS
    assert rounds == [0, 1, 2, 3]
    assert find_cut(histogram, 10, 10).decided
    assert find_cut(histogram, 10, 0).decided
    assert len(rounds) == 4, "a budget of all or nothing needs no pass"


def test_sortable_has_the_order_of_the_scores() -> None:
    ordered = np.array([-np.inf, -1.7e308, -2.5, -1.0, -5e-324, 0.0, 5e-324, 1e-9, 1.0, 1.0 + 2**-52, 1.7e308, np.inf])
    keys = sortable(ordered)
    assert keys.dtype == np.uint64
    assert all(int(low) < int(high) for low, high in itertools.pairwise(keys))
    assert sortable(np.array([-0.0])) == sortable(np.array([0.0]))
    values = np.random.default_rng(2).standard_normal(10_000)
    np.testing.assert_array_equal(np.argsort(sortable(values)), np.argsort(values))


def test_sortable_refuses_nan() -> None:
    with pytest.raises(ValueError, match="1 are NaN, the first at position 2"):
        sortable(np.array([0.0, -np.inf, np.nan]))


@pytest.mark.parametrize("keep_fraction", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_budget_refuses_what_is_no_fraction(keep_fraction: float) -> None:
    with pytest.raises(ValueError, match=r"keep_fraction .* lies in \(0, 1\]"):
        budget(10, keep_fraction)


def test_budget_rounds_down() -> None:
    assert [budget(10, fraction) for fraction in (0.25, 0.5, 0.99, 1.0)] == [2, 5, 9, 10]
    assert budget(1, 0.5) == 0
