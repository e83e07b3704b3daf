"""Exact top-k thresholds: the pairs with the highest keys, a given number of them in each group, without collecting the
keys in one place.

Keys are unsigned 64-bit numbers spread over parts, each in one of k groups: one group for a threshold over all pairs,
one per cluster for quotas. The search is a radix select, from the top digit of the thresholds down. In each round

1. every part makes a histogram of the next digit of its keys, counting only keys that agree with the threshold of
   their group in all digits found so far;
2. the histograms are added up: they alone leave the parts, and their size does not depend on the number of keys;
3. cumulative counts from the highest digit down say which digit the threshold has, and how many keys that share it are
   still wanted (`TopKThresholds.refine`).

A round holds at most 2**20 counts. For one group that makes four rounds of 16-bit digits; for many groups digits are
shorter and rounds more. A decided group takes no further part. Keys equal to a threshold are ties: the earliest are
kept, and one last count per part shares them out.

Example with 4-bit keys, 2-bit digits, k = 1 and 3 wanted of 1101, 1110, 0111, 0110, 0001: the first histogram of digits
(00, 01, 10, 11) is (1, 2, 0, 2). From the top, 2 keys begin with 11 and 4 with 01 or more, so the threshold begins with
01 and 3 - 2 = 1 key is wanted among those. The second histogram of 0111 and 0110 is (0, 0, 1, 1): the top one, 11, is
enough. The threshold is 0111.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Ints = NDArray[np.int64]
Groups = NDArray[np.integer]

KEY_BITS = 64
# counts of a round's histograms, all groups together: 8 MB as int64
MAX_COUNTS = 1 << 20
MIN_DIGIT_BITS, MAX_DIGIT_BITS = 2, 16


def budget(num_pairs: int, keep_fraction: float) -> int:
    """How many of `num_pairs` to keep: int(num_pairs * keep_fraction).

    Raises:
        ValueError: `keep_fraction` lies outside (0, 1].
    """
    if not 0.0 < keep_fraction <= 1.0:
        raise ValueError(
            f"keep_fraction is the fraction of pairs kept and lies in (0, 1]; got {keep_fraction}; for example, 0.8 "
            "prunes a fifth"
        )
    return int(num_pairs * keep_fraction)


def sortable(scores: NDArray[np.float64] | NDArray[np.float32]) -> Keys:
    """Keys uint64 [n] in the order of the scores [n]: -0.0 and 0.0 have one key, infinities have their own.

    float32 scores fill the upper 32 bits, so their thresholds are found in half the rounds. Do not mix keys of the two
    precisions.

    Raises:
        ValueError: a score is NaN, which has no place in an order.
    """
    invalid = np.flatnonzero(np.isnan(scores))
    if invalid.size:
        raise ValueError(f"scores must be numbers; {invalid.size} are NaN, the first at position {invalid[0]}")
    num_bits = 8 * scores.itemsize
    # adding 0 turns -0.0 into 0.0. IEEE floats sort as integers with sign and magnitude: setting the sign bit puts
    # positive numbers above negative ones, and inverting all bits of a negative number reverses their order
    bits = (scores + scores.dtype.type(0)).view(f"u{scores.itemsize}").astype(np.uint64)
    sign = np.uint64(1 << (num_bits - 1))
    return np.where(bits & sign, ~bits, bits | sign) << np.uint64(KEY_BITS - num_bits)


@dataclass(frozen=True, eq=False)
class TopKThresholds:
    """The thresholds of k groups, as far as the search has found them.

    Attributes:
        thresholds: uint64 [k]. Once a group is decided: keys above the threshold are kept, keys below it are not, and
            of the keys equal to it the first `num_wanted_ties` are kept. Until then: the digits found so far, followed
            by zeros.
        num_wanted_ties: int64 [k]. Until a group is decided: how many of the keys that begin with its digits are kept.
        undecided: int64 [u], the groups that take part in the next round, ascending.
        num_bits: how many bits of the thresholds of undecided groups are known.
    """

    thresholds: Keys
    num_wanted_ties: Ints
    undecided: Ints
    num_bits: int = 0

    @classmethod
    def start(cls, num_pairs: Ints, num_wanted: Ints) -> TopKThresholds:
        """The state before the first round: groups have `num_pairs` [k] keys, of which `num_wanted` [k] are wanted."""
        assert num_pairs.shape == num_wanted.shape, (num_pairs.shape, num_wanted.shape)
        assert ((num_wanted >= 0) & (num_wanted <= num_pairs)).all(), (num_wanted, num_pairs)
        # a group of which all or none is wanted is decided at once: every key is above or equal to 0, and none is above
        # the largest key, of which no tie is wanted
        none = np.where(num_wanted == 0, np.uint64(2**KEY_BITS - 1), np.uint64(0))
        return cls(none, num_wanted.copy(), np.flatnonzero((num_wanted > 0) & (num_wanted < num_pairs)))

    @property
    def decided(self) -> bool:
        """Whether no further round is needed."""
        return not self.undecided.size

    @property
    def digit_bits(self) -> int:
        """Bits of the digit of this round: as many as `MAX_COUNTS` allows."""
        affordable = (MAX_COUNTS // max(1, self.undecided.size)).bit_length() - 1
        return min(max(MIN_DIGIT_BITS, min(affordable, MAX_DIGIT_BITS)), KEY_BITS - self.num_bits)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the histograms of this round: undecided groups, values of a digit."""
        return self.undecided.size, 1 << self.digit_bits

    def histogram(self, keys: Keys, groups: Groups | None = None) -> Ints:
        """The histogram of one part: the next digits of those keys that begin with the digits of their group.

        Args:
            keys: uint64 [n].
            groups: [n] in [0, k); None: all in the only group.

        Returns:
            int64 [undecided groups, 2**digit_bits].
        """
        num_rows, num_bins = self.shape
        row_of = np.full(len(self.thresholds), -1)
        row_of[self.undecided] = np.arange(num_rows)
        groups = self._groups(keys, groups)
        rows = row_of[groups]
        open_ = rows >= 0
        if self.num_bits:
            rest = np.uint64(KEY_BITS - self.num_bits)
            open_ &= keys >> rest == self.thresholds[groups] >> rest
        digits = (keys[open_] >> np.uint64(KEY_BITS - self.num_bits - self.digit_bits)) & np.uint64(num_bins - 1)
        bins = rows[open_] * num_bins + digits.astype(np.int64)
        return np.bincount(bins, minlength=num_rows * num_bins).reshape(self.shape)

    def refine(self, histogram: Ints) -> TopKThresholds:
        """The state after this round, given the sum of the histograms of all parts."""
        each = np.arange(self.undecided.size)
        # the number of keys with digit d or higher, for every d. It falls as d grows, so the digit of the threshold is
        # the last d with at least as many keys as are wanted
        at_or_above = np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1]
        wanted = self.num_wanted_ties[self.undecided]
        digit = np.count_nonzero(at_or_above >= wanted[:, None], axis=1) - 1
        in_digit = histogram[each, digit]
        # keys with a higher digit are kept; the others are wanted among those with this digit
        wanted = wanted - (at_or_above[each, digit] - in_digit)
        num_bits = self.num_bits + self.digit_bits
        thresholds, num_wanted_ties = self.thresholds.copy(), self.num_wanted_ties.copy()
        thresholds[self.undecided] |= digit.astype(np.uint64) << np.uint64(KEY_BITS - num_bits)
        num_wanted_ties[self.undecided] = wanted
        # if all keys with this digit are wanted, the digits found, followed by zeros, are a threshold already
        open_ = (wanted < in_digit) & (num_bits < KEY_BITS)
        return TopKThresholds(thresholds, num_wanted_ties, self.undecided[open_], num_bits)

    def ties(self, keys: Keys, groups: Groups | None = None) -> tuple[Ints, Ints]:
        """The groups of a part with keys equal to their threshold, int64 [m] ascending, and how many keys, int64
        [m]."""
        assert self.decided
        groups = self._groups(keys, groups)
        group, count = np.unique(groups[keys == self.thresholds[groups]], return_counts=True)
        return group.astype(np.int64), count

    def _groups(self, keys: Keys, groups: Groups | None) -> Groups:
        if groups is not None:
            return groups
        assert len(self.thresholds) == 1, "keys of several groups need their groups"
        return np.zeros(len(keys), np.int64)


def find_thresholds(
    total_histogram: Callable[[TopKThresholds], Ints], num_pairs: Ints, num_wanted: Ints
) -> TopKThresholds:
    """The decided thresholds; `total_histogram(state)` adds up `state.histogram(keys, groups)` over all parts, in any
    order."""
    state = TopKThresholds.start(num_pairs, num_wanted)
    while not state.decided:
        state = state.refine(total_histogram(state))
    return state


def share_ties(state: TopKThresholds, part: Ints, group: Ints, count: Ints) -> Ints:
    """How many of its ties each part keeps in each group, the earlier parts first.

    Args:
        state: decided.
        part, group, count: int64 [m], the results of `state.ties` for all parts, with the position of the part, in any
            order.

    Returns:
        int64 [m], at most `count`.
    """
    order = np.lexsort((part, group))
    before = _before_in_run(group[order], count[order])
    allowed = np.empty_like(count)
    allowed[order] = np.clip(state.num_wanted_ties[group[order]] - before, 0, count[order])
    return allowed


def keep_mask(
    keys: Keys, groups: Groups | None, state: TopKThresholds, allowed_group: Ints, allowed_count: Ints
) -> NDArray[np.bool_]:
    """Which pairs of a part are kept, bool [n]: those with a key above the threshold of their group and, of the keys
    equal to it, the first `allowed_count` [m] of each `allowed_group` [m] in row order."""
    assert state.decided
    groups = state._groups(keys, groups)
    thresholds = state.thresholds[groups]
    keep = keys > thresholds
    ties = np.flatnonzero(keys == thresholds)
    ties = ties[np.argsort(groups[ties], kind="stable")]
    allowed = np.zeros(len(state.thresholds), np.int64)
    allowed[allowed_group] = allowed_count
    rank = _before_in_run(groups[ties], np.ones(len(ties), np.int64))
    keep[ties[rank < allowed[groups[ties]]]] = True
    return keep


def _before_in_run(run: Groups, count: Ints) -> Ints:
    """For each entry, the sum of the earlier counts in its run of equal values, int64 [m]."""
    before = np.cumsum(count) - count
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    return before - np.repeat(before[starts], np.diff(starts, append=len(run)))
