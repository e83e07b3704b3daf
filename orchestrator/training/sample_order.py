"""The training stream as a function: which pair stands where, for any number of workers and from any step, without
reading.

In epoch e the parts are put in a seeded order; their kept pairs form one sequence of K, known by prefix sums, cut
into L contiguous lanes. Inside a lane a seeded permutation acts within fixed windows of W positions. Global batch b
takes s = B / L pairs from every lane; rank r of N owns the lanes l with l mod N = r. The whole run is one stream of
as many positions as samples are seen, K an epoch: lane l holds position p of the run where the running index g = p * L
+ l falls into epoch g // K, so the lanes differ by at most one pair in the whole run, batches run across epoch borders
and only the very last may be short. (MosaicML streaming's canonical nodes, with seek by arithmetic.)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UserError

Int = NDArray[np.int64]
PART_ORDER, WINDOW_ORDER = 0, 1
CACHED_WINDOWS = 4096


class Pairs(NamedTuple):
    """Pairs by position, one entry each: the epoch, the part's index, and the ordinal among the part's kept pairs."""

    epoch: Int
    part: Int
    kept_ordinal: Int


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The order of a training phase over `kept_per_part` pairs: `num_samples` positions, K of them an epoch."""

    kept_per_part: tuple[int, ...]
    num_samples: int
    global_batch_size: int
    num_lanes: int
    window: int
    seed: int

    def __post_init__(self) -> None:
        assert self.global_batch_size % self.num_lanes == 0, "every lane gives as many pairs to each global batch"
        if not 0 < self.global_batch_size <= self.num_pairs:
            raise UserError(
                f"the pool keeps {self.num_pairs:,} pairs, fewer than one global batch of "
                f"{self.global_batch_size:,}; keep more or set a smaller training.global_batch_size"
            )

    @cached_property
    def num_pairs(self) -> int:
        """K, the pairs of one epoch."""
        return int(sum(self.kept_per_part))

    @property
    def num_epochs(self) -> float:
        """E, the samples seen by the pairs of one epoch."""
        return self.num_samples / self.num_pairs

    @property
    def num_steps(self) -> int:
        """Global batches of the whole phase, the last perhaps short."""
        return -(-self.num_samples // self.global_batch_size)

    @property
    def lane_step(self) -> int:
        """s = B / L, the pairs each lane gives to a global batch."""
        return self.global_batch_size // self.num_lanes

    @property
    def window_steps(self) -> int:
        """Whole steps in a window: W is rounded to a multiple of s, so that windows and batches border together."""
        return max(1, round(self.window / self.lane_step))

    def lane_length(self, lane: int) -> int:
        """Positions of a lane in the whole run."""
        return self._positions_before(self.num_samples, lane)

    def _lane_start(self, epoch: int, lane: int) -> int:
        return self._positions_before(epoch * self.num_pairs, lane)

    def _positions_before(self, index: int, lane: int) -> int:
        # the number of running indices g < index with g mod L == lane
        return (index - lane + self.num_lanes - 1) // self.num_lanes

    def _sequence_start(self, epoch: int, lane: int) -> int:
        # where the lane's stretch of this epoch begins in the epoch's sequence: the lanes before it come first
        def before(at: int) -> int:
            whole, rest = divmod(at * self.num_pairs, self.num_lanes)
            return whole * lane + min(rest, lane)

        return before(epoch + 1) - before(epoch)

    def positions(self, lane: int, first_step: int, num_steps: int) -> tuple[int, int]:
        """The lane's positions [start, stop) that the steps take, cut at the lane's end."""
        length = self.lane_length(lane)
        return min(first_step * self.lane_step, length), min((first_step + num_steps) * self.lane_step, length)

    def pairs(self, lane: int, start: int, stop: int) -> Pairs:
        """The pairs at positions [start, stop) of a lane, in the order they are trained on."""
        pieces = [self._piece(lane, *bounds) for bounds in self._pieces(lane, start, stop)]
        if not pieces:
            empty = np.empty(0, np.int64)
            return Pairs(empty, empty, empty)
        return Pairs(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))

    def _pieces(self, lane: int, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int, int]]:
        # a piece is a window inside one epoch: permuting it never mixes two epochs
        window = self.window_steps * self.lane_step
        while start < stop:
            epoch = (start * self.num_lanes + lane) // self.num_pairs
            number = start // window
            first = max(number * window, self._lane_start(epoch, lane))
            last = min((number + 1) * window, self._lane_start(epoch + 1, lane))
            yield epoch, number, first, last, start, min(stop, last)
            start = last

    def _piece(self, lane: int, epoch: int, number: int, first: int, last: int, start: int, stop: int) -> Pairs:
        order = _permutation((self.seed, WINDOW_ORDER, epoch, lane, number), last - first)[start - first : stop - first]
        sequence = self._sequence_start(epoch, lane) + (first - self._lane_start(epoch, lane)) + order
        parts, ends = self._epoch_order(epoch)
        slot = np.searchsorted(ends, sequence, side="right")
        begins = ends[slot] - np.asarray(self.kept_per_part, np.int64)[parts[slot]]
        return Pairs(np.full(len(sequence), epoch, np.int64), parts[slot], sequence - begins)

    def _epoch_order(self, epoch: int) -> tuple[Int, Int]:
        return _part_order(self.kept_per_part, self.seed, epoch)

    def rank_lanes(self, rank: int, num_ranks: int) -> range:
        """The lanes that a rank owns."""
        assert self.num_lanes % num_ranks == 0, "every rank owns as many lanes"
        return range(rank, self.num_lanes, num_ranks)

    def batch(self, step: int) -> Pairs:
        """The pairs of a global batch, lane by lane."""
        lanes = [self.pairs(lane, *self.positions(lane, step, 1)) for lane in range(self.num_lanes)]
        return Pairs(*(np.concatenate(columns) for columns in zip(*lanes, strict=True)))


@lru_cache(maxsize=CACHED_WINDOWS)
def _permutation(key: tuple[int, ...], size: int) -> Int:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(size)


@lru_cache(maxsize=4)
def _part_order(kept_per_part: tuple[int, ...], seed: int, epoch: int) -> tuple[Int, Int]:
    parts = _permutation((seed, PART_ORDER, epoch), len(kept_per_part))
    return parts, np.cumsum(np.asarray(kept_per_part, np.int64)[parts])
