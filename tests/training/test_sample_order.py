"""The sample order: each pair once per epoch, the same batches for any number of ranks, and any step directly."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import UserError
from orchestrator.training.sample_order import Pairs, SampleOrder


def make(kept_per_part: tuple[int, ...], *, num_epochs: int = 3, **changes: int) -> SampleOrder:
    num_samples = num_epochs * sum(kept_per_part)
    settings = {"num_samples": num_samples, "global_batch_size": 16, "num_lanes": 4, "window": 10, "seed": 7}
    return SampleOrder(kept_per_part=kept_per_part, **(settings | changes))


def as_list(pairs: Pairs) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in pairs), strict=True))


POOLS = [(5, 0, 12, 30, 1, 9), (16,), (17, 18), (1,) * 40, (100, 3, 251)]


@pytest.mark.parametrize("kept", POOLS)
def test_each_pair_is_seen_exactly_once_per_epoch(kept: tuple[int, ...]) -> None:
    order = make(kept)
    seen = [pair for step in range(order.num_steps) for pair in as_list(order.batch(step))]
    expected = {(e, part, i) for e in range(3) for part, n in enumerate(kept) for i in range(n)}
    assert len(seen) == len(expected) == order.num_samples
    assert set(seen) == expected


@pytest.mark.parametrize("num_samples", [16, 17, 100, 355, 600])
def test_fewer_samples_are_the_beginning_of_the_whole_order(num_samples: int) -> None:
    whole, order = make((100, 3, 251)), make((100, 3, 251), num_samples=num_samples)
    seen = [as_list(order.batch(step)) for step in range(order.num_steps)]
    assert sum(map(len, seen)) == num_samples
    full = num_samples // 16
    assert seen[:full] == [as_list(whole.batch(step)) for step in range(full)]
    assert all(set(rest) <= set(as_list(whole.batch(full))) for rest in seen[full:])


@pytest.mark.parametrize("kept", POOLS)
def test_only_the_last_batch_is_short_and_epochs_come_in_order(kept: tuple[int, ...]) -> None:
    order = make(kept)
    sizes = [len(order.batch(step).part) for step in range(order.num_steps)]
    assert sizes[:-1] == [16] * (order.num_steps - 1)
    assert 0 < sizes[-1] <= 16
    lane = order.pairs(1, 0, order.lane_length(1)).epoch
    assert (np.diff(lane) >= 0).all()


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(num_ranks: int) -> None:
    order = make((100, 3, 251))
    for step in range(order.num_steps):
        split = [
            pair
            for rank in range(num_ranks)
            for lane in order.rank_lanes(rank, num_ranks)
            for pair in as_list(order.pairs(lane, *order.positions(lane, step, 1)))
        ]
        assert sorted(split) == sorted(as_list(order.batch(step)))


def test_any_slice_of_a_lane_equals_that_slice_of_the_whole_lane() -> None:
    order = make((100, 3, 251))
    whole = as_list(order.pairs(2, 0, order.lane_length(2)))
    for start, stop in [(0, 1), (3, 50), (9, 11), (80, 200), (len(whole) - 1, len(whole)), (5, 5)]:
        assert as_list(order.pairs(2, start, stop)) == whole[start:stop]


def test_orders_differ_between_epochs_and_seeds_and_are_reproducible() -> None:
    kept = (40, 40, 40)
    assert as_list(make(kept).batch(0)) == as_list(make(kept).batch(0))
    assert as_list(make(kept).batch(0)) != as_list(make(kept, seed=8).batch(0))
    lane = make(kept, num_epochs=2).pairs(0, 0, 60)
    assert (
        lane.part[:30].tolist() != lane.part[30:].tolist()
        or lane.kept_ordinal[:30].tolist() != lane.kept_ordinal[30:].tolist()
    )


def test_fewer_pairs_than_a_global_batch_are_an_error_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"15 pairs.*global batch of 16"):
        make((5, 10))


def test_a_batch_mixes_pairs_from_the_whole_pool() -> None:
    order = make((64,) * 16, global_batch_size=64, num_lanes=16, window=64, num_epochs=1)
    assert len(set(order.batch(0).part.tolist())) == 16


def test_the_worked_example_of_the_documentation() -> None:
    order = make((2,) * 5, num_epochs=2, global_batch_size=4, num_lanes=2, window=4, seed=0)
    spans = [(span.epoch, span.window, span.first, span.last) for span in order._spans(1, 0, 10)]
    assert spans == [(0, 0, 0, 4), (0, 1, 4, 5), (1, 1, 5, 8), (1, 2, 8, 10)]
    assert as_list(order.pairs(1, 5, 8)) == [(1, 3, 0), (1, 0, 1), (1, 3, 1)]
