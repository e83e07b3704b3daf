"""The exact cut: which pairs hold the highest keys, a given number of them in each group, without bringing the keys
together.

Keys are unsigned 64-bit numbers spread over parts, each in one of k groups (one group: a global cut; clusters: a quota
for each). The thresholds are found from their top digit down: each part counts the next digit among its keys that share
the digits of their group found so far, the counts are added, and the sums say which digit each threshold has and how
many of the keys that share it are still wanted. A round holds at most 2**20 counts: digits of 16 bits and four rounds
for one group, of fewer bits and more rounds for many; a group that is decided takes no further part. Ties at a
threshold are kept by position: a last count per part shares them out.
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
MAX_COUNTS = 1 << 20
MIN_DIGIT_BITS, MAX_DIGIT_BITS = 2, 16


def budget(num_pairs: int, keep_fraction: float) -> int:
    """How many of `num_pairs` to keep: int(num_pairs * keep_fraction).

    Raises:
        ValueError: `keep_fraction` lies outside (0, 1].
    """
    if not 0.0 < keep_fraction <= 1.0:
        raise ValueError(
            f"keep_fraction is the fraction of pairs kept and lies in (0, 1]; got {keep_fraction}, "
            "set it for example to 0.8 to prune a fifth"
        )
    return int(num_pairs * keep_fraction)


def sortable(scores: NDArray[np.float64] | NDArray[np.float32]) -> Keys:
    """Keys uint64 [n] in the order of the scores [n]: -0.0 and 0.0 are one key, infinities have theirs.

    float32 scores fill the upper 32 bits, so that their thresholds are found in half the rounds; keys of the two
    precisions are not to be mixed.

    Raises:
        ValueError: a score is NaN, which has no place in an order.
    """
    invalid = np.flatnonzero(np.isnan(scores))
    if invalid.size:
        raise ValueError(f"scores to cut must be numbers; {invalid.size} are NaN, the first at position {invalid[0]}")
    num_bits = 8 * scores.itemsize
    bits = (scores + scores.dtype.type(0)).view(f"u{scores.itemsize}").astype(np.uint64)
    sign = np.uint64(1 << (num_bits - 1))
    return np.where(bits & sign, ~bits, bits | sign) << np.uint64(KEY_BITS - num_bits)


@dataclass(frozen=True, eq=False)
class Cut:
    """The search for the thresholds of k groups after some rounds.

    Attributes:
        thresholds: uint64 [k]; once decided: keys above their group's are kept, keys below are not, and of those equal
            to it the first `num_wanted_ties`. Until then: the digits found so far, followed by zeros.
        num_wanted_ties: int64 [k]; until a group is decided, how many of the keys that begin with its digits are kept.
        undecided: int64 [u], the groups that take part in the next round, ascending.
        num_bits: how many bits of the thresholds of undecided groups are known.
    """

    thresholds: Keys
    num_wanted_ties: Ints
    undecided: Ints
    num_bits: int = 0

    @classmethod
    def start(cls, num_pairs: Ints, num_wanted: Ints) -> Cut:
        """Before the first round: of `num_pairs` [k] keys in each group `num_wanted` [k] are to be kept."""
        assert num_pairs.shape == num_wanted.shape, (num_pairs.shape, num_wanted.shape)
        assert ((num_wanted >= 0) & (num_wanted <= num_pairs)).all(), (num_wanted, num_pairs)
        none = np.where(num_wanted == 0, np.uint64(2**KEY_BITS - 1), np.uint64(0))
        return cls(none, num_wanted.copy(), np.flatnonzero((num_wanted > 0) & (num_wanted < num_pairs)))

    @property
    def decided(self) -> bool:
        """No further round is needed."""
        return not self.undecided.size

    @property
    def digit_bits(self) -> int:
        """Bits of this round's digit: as many as the bound on counts allows."""
        affordable = (MAX_COUNTS // max(1, self.undecided.size)).bit_length() - 1
        return min(max(MIN_DIGIT_BITS, min(affordable, MAX_DIGIT_BITS)), KEY_BITS - self.num_bits)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of this round's histograms: undecided groups, values of a digit."""
        return self.undecided.size, 1 << self.digit_bits

    def histogram(self, keys: Keys, groups: Groups | None = None) -> Ints:
        """One part's answer to this round: the next digits of its keys that begin with their group's.

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

    def refine(self, histogram: Ints) -> Cut:
        """The next round, given the sum of all parts' histograms."""
        each = np.arange(self.undecided.size)
        at_or_above = np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1]
        wanted = self.num_wanted_ties[self.undecided]
        digit = np.count_nonzero(at_or_above >= wanted[:, None], axis=1) - 1
        in_digit = histogram[each, digit]
        wanted = wanted - (at_or_above[each, digit] - in_digit)
        num_bits = self.num_bits + self.digit_bits
        thresholds, num_wanted_ties = self.thresholds.copy(), self.num_wanted_ties.copy()
        thresholds[self.undecided] |= digit.astype(np.uint64) << np.uint64(KEY_BITS - num_bits)
        num_wanted_ties[self.undecided] = wanted
        open_ = (wanted < in_digit) & (num_bits < KEY_BITS)
        return Cut(thresholds, num_wanted_ties, self.undecided[open_], num_bits)

    def ties(self, keys: Keys, groups: Groups | None = None) -> tuple[Ints, Ints]:
        """A part's groups that have keys equal to their threshold, int64 [m] ascending, and how many, int64 [m]."""
        assert self.decided
        groups = self._groups(keys, groups)
        group, count = np.unique(groups[keys == self.thresholds[groups]], return_counts=True)
        return group.astype(np.int64), count

    def _groups(self, keys: Keys, groups: Groups | None) -> Groups:
        if groups is not None:
            return groups
        assert len(self.thresholds) == 1, "keys of several groups come with their groups"
        return np.zeros(len(keys), np.int64)


def find_cut(total_histogram: Callable[[Cut], Ints], num_pairs: Ints, num_wanted: Ints) -> Cut:
    """The decided cut; `total_histogram` adds up `cut.histogram(keys, groups)` over all parts, in any order."""
    cut = Cut.start(num_pairs, num_wanted)
    while not cut.decided:
        cut = cut.refine(total_histogram(cut))
    return cut


def share_ties(cut: Cut, part: Ints, group: Ints, count: Ints) -> Ints:
    """How many of its ties each part keeps in each group, the earlier parts first.

    Args:
        cut: decided.
        part, group, count: int64 [m], every part's answer to `cut.ties` with its position among the parts, in any
            order.

    Returns:
        int64 [m], at most `count`.
    """
    order = np.lexsort((part, group))
    before = _before_in_run(group[order], count[order])
    allowed = np.empty_like(count)
    allowed[order] = np.clip(cut.num_wanted_ties[group[order]] - before, 0, count[order])
    return allowed


def keep_mask(
    keys: Keys, groups: Groups | None, cut: Cut, allowed_group: Ints, allowed_count: Ints
) -> NDArray[np.bool_]:
    """Bool [n]: a part's keys above their group's threshold, and the first `allowed_count` [m] keys equal to it of each
    `allowed_group` [m], by row."""
    assert cut.decided
    groups = cut._groups(keys, groups)
    thresholds = cut.thresholds[groups]
    keep = keys > thresholds
    ties = np.flatnonzero(keys == thresholds)
    ties = ties[np.argsort(groups[ties], kind="stable")]
    allowed = np.zeros(len(cut.thresholds), np.int64)
    allowed[allowed_group] = allowed_count
    rank = _before_in_run(groups[ties], np.ones(len(ties), np.int64))
    keep[ties[rank < allowed[groups[ties]]]] = True
    return keep


def _before_in_run(run: Groups, count: Ints) -> Ints:
    """Of each entry, the sum of the counts before it in its run of equal values, int64 [m]."""
    before = np.cumsum(count) - count
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    return before - np.repeat(before[starts], np.diff(starts, append=len(run)))
