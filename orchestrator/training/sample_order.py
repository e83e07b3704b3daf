"""The order of training samples as a function: which pair stands at which position, computed without reading anything.

It gives the same global batches for any number of workers and from any step. In epoch e the parts come in a seeded
order; their kept pairs form one sequence of K pairs, known from prefix sums, which is cut into L contiguous lanes.
Inside a lane, a seeded permutation acts within fixed windows of W positions. Global batch b takes s = B / L pairs from
each lane; rank r of N owns the lanes l with l mod N = r.

The whole run is a single stream with one position per sample seen, K per epoch. Lane l has position p of the run where
the running index g = p * L + l falls into epoch g // K. So the lanes differ by at most one pair in the whole run,
batches cross epoch borders, and only the last batch may be short. (The idea is that of MosaicML streaming's canonical
nodes; here any step can be reached by arithmetic.)

An example with K = 10 pairs, L = 2 lanes, B = 4 (s = 2), windows of 4 positions, 2 epochs. Rows are lanes, columns are
positions of a lane; cells are running indices g:

    batch             0       1       2       3       4
    position p      0   1   2   3   4   5   6   7   8   9
                  +-------+-------+-------+-------+-------+
    lane 0        | 0   2 | 4   6 | 8  10 |12  14 |16  18 |
    lane 1        | 1   3 | 5   7 | 9  11 |13  15 |17  19 |
                  +-------+-------+-------+-------+-------+
    epoch g // 10 | 0   0   0   0   0 | 1   1   1   1   1 |
    window        | 0   0   0   0 | 1   1   1   1 | 2   2 |
    span          |---------------|---|-----------|-------|

A window that crosses an epoch border is permuted as two spans, so a permutation never mixes two epochs. Here the second
window gives the span [4, 5) of epoch 0 and the span [5, 8) of epoch 1. Within the sequence of an epoch, lane 0 comes
first: its 5 positions hold the pairs 0 to 4 of that sequence, those of lane 1 the pairs 5 to 9."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UserError

Int = NDArray[np.int64]
# the second number of a permutation's seed: what is permuted
PART_ORDER, WINDOW_ORDER = 0, 1
CACHED_WINDOWS = 4096


class Pairs(NamedTuple):
    """Pairs by position, one entry each: the epoch, the part's index, and the ordinal among the part's kept pairs."""

    epoch: Int
    part: Int
    kept_ordinal: Int


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive positions of one lane that are permuted together: one window inside one epoch.

    The span is [first, last); a request takes the positions [start, stop) of it. All four count the lane's positions
    in the whole run."""

    lane: int
    epoch: int
    window: int
    first: int
    last: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """The order of a training phase over `kept_per_part` pairs: `num_samples` positions, K per epoch.

    Errors: `UserError` if there are fewer pairs than a global batch needs."""

    kept_per_part: tuple[int, ...]
    num_samples: int
    global_batch_size: int
    num_lanes: int
    window: int
    seed: int

    def __post_init__(self) -> None:
        assert self.global_batch_size % self.num_lanes == 0, "every lane gives the same number of pairs to each batch"
        if not 0 < self.global_batch_size <= self.num_pairs:
            raise UserError(
                f"selection keeps {self.num_pairs:,} pairs, fewer than one global batch of "
                f"{self.global_batch_size:,}: keep more pairs or set a smaller training.global_batch_size"
            )

    @cached_property
    def num_pairs(self) -> int:
        """K, the pairs of one epoch."""
        return int(sum(self.kept_per_part))

    @property
    def num_epochs(self) -> float:
        """Epochs of the phase: samples seen, divided by the pairs of one epoch."""
        return self.num_samples / self.num_pairs

    @property
    def num_steps(self) -> int:
        """Global batches of the whole phase; the last one may be short."""
        return -(-self.num_samples // self.global_batch_size)

    @property
    def lane_step(self) -> int:
        """s = B / L, the pairs that each lane gives to a global batch."""
        return self.global_batch_size // self.num_lanes

    @property
    def window_steps(self) -> int:
        """Steps in a window. W is rounded to a multiple of s, so that no batch crosses a window border."""
        return max(1, round(self.window / self.lane_step))

    def summary(self) -> dict[str, float]:
        """Return the sizes for the phase's summary; epochs are rounded to four digits."""
        return {
            "steps": self.num_steps,
            "samples_seen": self.num_samples,
            "pairs": self.num_pairs,
            "epochs": round(self.num_epochs, 4),
        }

    def lane_length(self, lane: int) -> int:
        """Positions of a lane in the whole run."""
        return self._positions_before(self.num_samples, lane)

    def positions(self, lane: int, first_step: int, num_steps: int) -> tuple[int, int]:
        """Return the lane's positions [start, stop) for these steps, cut at the lane's end."""
        length = self.lane_length(lane)
        return min(first_step * self.lane_step, length), min((first_step + num_steps) * self.lane_step, length)

    def rank_lanes(self, rank: int, num_ranks: int) -> range:
        """Return the lanes of a rank."""
        assert self.num_lanes % num_ranks == 0, "every rank owns the same number of lanes"
        return range(rank, self.num_lanes, num_ranks)

    def slots(self, num_ranks: int) -> int:
        """Return the pairs of a rank's share of a global batch."""
        return self.global_batch_size // num_ranks

    def batch(self, step: int) -> Pairs:
        """Return the pairs of a global batch, lane by lane."""
        lanes = [self.pairs(lane, *self.positions(lane, step, 1)) for lane in range(self.num_lanes)]
        return Pairs(*(np.concatenate(columns) for columns in zip(*lanes, strict=True)))

    def pairs(self, lane: int, start: int, stop: int) -> Pairs:
        """Return the pairs at positions [start, stop) of a lane, in training order."""
        found = [self._span_pairs(span) for span in self._spans(lane, start, stop)]
        if not found:
            empty = np.empty(0, np.int64)
            return Pairs(empty, empty, empty)
        return Pairs(*(np.concatenate(columns) for columns in zip(*found, strict=True)))

    def _spans(self, lane: int, start: int, stop: int) -> Iterator[Span]:
        """Cut the positions [start, stop) of a lane at the borders of windows and of epochs."""
        window_length = self.window_steps * self.lane_step
        while start < stop:
            # the epoch of the running index g = start * L + lane
            epoch = (start * self.num_lanes + lane) // self.num_pairs
            window = start // window_length
            first = max(window * window_length, self._lane_start(epoch, lane))
            last = min((window + 1) * window_length, self._lane_start(epoch + 1, lane))
            yield Span(lane=lane, epoch=epoch, window=window, first=first, last=last, start=start, stop=min(stop, last))
            start = last

    def _span_pairs(self, span: Span) -> Pairs:
        """Return the pairs at the requested positions of a span.

        In the example of the module's docstring, with 5 parts of 2 kept pairs each and seed 0, take the span [5, 8) of
        lane 1, which is in window 1 and epoch 1:

            position in the lane            5  6  7
            place in the span, permuted     1  0  2   seeded by (seed, WINDOW_ORDER, epoch, lane, window)
            place in the epoch's sequence   6  5  7   lane 1 begins at 5, the span begins 0 into the lane's epoch
            part                            3  0  3   the first part with an end above the place
            ordinal among its kept pairs    0  1  1   the place minus the begin of the part

        The parts of epoch 1, in the order seeded by (seed, PART_ORDER, epoch), are 2 4 0 3 1; their ends in the
        sequence are 2 4 6 8 10."""
        seed = (self.seed, WINDOW_ORDER, span.epoch, span.lane, span.window)
        place_in_span = _permutation(seed, span.last - span.first)[span.start - span.first : span.stop - span.first]
        into_epoch = span.first - self._lane_start(span.epoch, span.lane)
        place = self._sequence_start(span.epoch, span.lane) + into_epoch + place_in_span
        parts, ends = _part_order(self.kept_per_part, self.seed, span.epoch)
        slot = np.searchsorted(ends, place, side="right")
        begins = ends[slot] - np.asarray(self.kept_per_part, np.int64)[parts[slot]]
        return Pairs(np.full(len(place), span.epoch, np.int64), parts[slot], place - begins)

    def _lane_start(self, epoch: int, lane: int) -> int:
        """Return the lane's first position of an epoch."""
        return self._positions_before(epoch * self.num_pairs, lane)

    def _positions_before(self, index: int, lane: int) -> int:
        """Return how many running indices g < `index` belong to the lane, which is g mod L == lane."""
        return (index - lane + self.num_lanes - 1) // self.num_lanes

    def _sequence_start(self, epoch: int, lane: int) -> int:
        """Return where the lane begins in the epoch's sequence: after all positions of the lanes before it."""
        return self._lanes_before(epoch + 1, lane) - self._lanes_before(epoch, lane)

    def _lanes_before(self, epoch: int, lane: int) -> int:
        """Return how many positions the lanes 0 to `lane` - 1 have in all epochs before `epoch`.

        Each full round of L running indices gives every lane one position; an incomplete round gives one to each of
        the first lanes."""
        rounds, rest = divmod(epoch * self.num_pairs, self.num_lanes)
        return rounds * lane + min(rest, lane)


@lru_cache(maxsize=CACHED_WINDOWS)
def _permutation(key: tuple[int, ...], size: int) -> Int:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(size)


@lru_cache(maxsize=4)
def _part_order(kept_per_part: tuple[int, ...], seed: int, epoch: int) -> tuple[Int, Int]:
    """Return the parts in the epoch's order, and for each the end of its pairs in the epoch's sequence."""
    parts = _permutation((seed, PART_ORDER, epoch), len(kept_per_part))
    return parts, np.cumsum(np.asarray(kept_per_part, np.int64)[parts])
