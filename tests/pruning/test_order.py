"""The order within clusters: farthest first, nearest first, or random by a separate hash."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from orchestrator.pruning.order import Order, order_keys, random_keys, step_seed

DISTANCES = np.array([0.2, 0.5, 0.0, 0.5, 2.0, -1e-8], np.float32)
ORDINALS = np.arange(100, 106)


def ordered(order: Order, seed: int = 0) -> list[int]:
    """Return positions by descending key; equal keys by position, as in every selection step."""
    return np.lexsort((ORDINALS, ~order_keys(DISTANCES, ORDINALS, order, seed))).tolist()


def test_hard_is_farthest_first_and_easy_is_nearest_first() -> None:
    assert ordered("hard") == [4, 1, 3, 0, 2, 5]
    assert ordered("easy") == [5, 2, 0, 1, 3, 4]
    assert ordered("hard", seed=7) == ordered("hard")


def test_random_order_depends_only_on_ordinal_and_seed() -> None:
    ordinals = np.random.default_rng(0).permutation(1000)
    distances = np.zeros(1000, np.float32)
    keys = order_keys(distances, ordinals, "random", 3)
    np.testing.assert_array_equal(keys[:10], order_keys(distances[:10] + 1, ordinals[:10], "random", 3))
    assert len(np.unique(keys)) == 1000
    assert (keys != order_keys(distances, ordinals, "random", 4)).all()


def test_a_nan_distance_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 are NaN, the first at position 1"):
        order_keys(np.array([0.5, np.nan], np.float32), np.arange(2), "hard", 0)


def test_steps_with_the_same_seed_keep_independent_pairs() -> None:
    ordinals = np.arange(100_000)
    fractions = {"random": 0.5, "metaclip": 0.3, "semdedup": 0.4, "dbp": 0.3, "dbp_2": 0.3}
    kept = {
        name: random_keys(step_seed(7, name), ordinals) >= np.uint64(2**64 * (1 - fraction))
        for name, fraction in fractions.items()
    }
    for one, other in itertools.combinations(fractions, 2):
        overlap = (kept[one] & kept[other]).mean()
        assert abs(overlap - fractions[one] * fractions[other]) < 0.006, f"{one} and {other}: 4 standard deviations"


def test_streams_stay_the_same() -> None:
    assert step_seed(5, "random") == 5
    assert step_seed(5, "metaclip") == 5 ^ int.from_bytes(b"metaclip", "big")
    assert step_seed(5, "semdedup") == 5 ^ 0xF00EA5DB242254E2
