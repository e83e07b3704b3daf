"""The exact global cut: which pairs hold the `budget` highest keys, without bringing the keys together.

Keys are unsigned 64-bit numbers spread over parts. The threshold is found from its top digit down, 16 bits a round:
each part counts the next digit among its keys that share the digits found so far, the counts are added, and the sum
says which digit the threshold has and how many of the keys below it are still wanted. So at most four passes, and 512
KiB a part and pass, whatever the number of pairs. Ties at the threshold are kept by position: a last count per part
shares them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

DIGIT_BITS = 16
NUM_DIGITS = 64 // DIGIT_BITS
NUM_BINS = 1 << DIGIT_BITS
_SIGN = np.uint64(1 << 63)


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


def sortable(scores: NDArray[np.float64]) -> Keys:
    """Keys uint64 [n] in the order of the scores float64 [n]: -0.0 and 0.0 are one key, infinities have theirs.

    Raises:
        ValueError: a score is NaN, which has no place in an order.
    """
    invalid = np.flatnonzero(np.isnan(scores))
    if invalid.size:
        raise ValueError(f"scores to cut must be numbers; {invalid.size} are NaN, the first at position {invalid[0]}")
    bits = (scores + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


@dataclass(frozen=True)
class Cut:
    """The search for the threshold after some rounds.

    Attributes:
        prefix: the digits of the threshold found so far, as a number.
        num_digits: how many digits that is.
        num_wanted: how many of the keys that begin with `prefix` are kept; all keys above those are.
        decided: no further round is needed.
    """

    prefix: int
    num_digits: int
    num_wanted: int
    decided: bool

    @classmethod
    def start(cls, num_pairs: int, budget: int) -> Cut:
        """Before the first round: `budget` of `num_pairs` keys are wanted, 0 <= budget <= num_pairs."""
        assert 0 <= budget <= num_pairs, (budget, num_pairs)
        if budget == 0:
            return cls(prefix=2**64 - 1, num_digits=NUM_DIGITS, num_wanted=0, decided=True)
        return cls(prefix=0, num_digits=0, num_wanted=budget, decided=budget == num_pairs)

    def histogram(self, keys: Keys) -> NDArray[np.int64]:
        """One part's answer to this round, int64 [65536]: the next digits of its keys that begin with `prefix`."""
        shift = np.uint64(64 - DIGIT_BITS * (self.num_digits + 1))
        if self.num_digits:
            keys = keys[keys >> (shift + np.uint64(DIGIT_BITS)) == np.uint64(self.prefix)]
        digits = (keys >> shift) & np.uint64(NUM_BINS - 1)
        return np.bincount(digits.astype(np.intp), minlength=NUM_BINS)

    def refine(self, histogram: NDArray[np.int64]) -> Cut:
        """The next round, given the sum of all parts' histograms."""
        at_or_above = np.cumsum(histogram[::-1])[::-1]
        digit = int(np.flatnonzero(at_or_above >= self.num_wanted)[-1])
        num_wanted = self.num_wanted - int(at_or_above[digit] - histogram[digit])
        num_digits = self.num_digits + 1
        return Cut(
            prefix=self.prefix << DIGIT_BITS | digit,
            num_digits=num_digits,
            num_wanted=num_wanted,
            decided=num_digits == NUM_DIGITS or num_wanted == histogram[digit],
        )

    @property
    def threshold(self) -> int:
        """Keys above it are kept and keys below it are not; of those equal to it the first `num_wanted` at most."""
        assert self.decided
        return self.prefix << (64 - DIGIT_BITS * self.num_digits)

    def num_ties(self, keys: Keys) -> int:
        """How many keys of a part equal the threshold."""
        return int(np.count_nonzero(keys == np.uint64(self.threshold)))

    def share_ties(self, num_ties: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many ties each part keeps, int64 [parts], from how many each has, in the order of the parts."""
        before = np.cumsum(num_ties) - num_ties
        return np.clip(self.num_wanted - before, 0, num_ties)


def find_cut(total_histogram: Callable[[Cut], NDArray[np.int64]], num_pairs: int, budget: int) -> Cut:
    """The decided cut; `total_histogram` adds up `cut.histogram(keys)` over all parts, in any order."""
    cut = Cut.start(num_pairs, budget)
    while not cut.decided:
        cut = cut.refine(total_histogram(cut))
    return cut


def keep_mask(keys: Keys, threshold: int, ties_allowed: int) -> NDArray[np.bool_]:
    """Bool [n]: the keys of a part above the threshold, and its first `ties_allowed` that equal it."""
    keep = keys > np.uint64(threshold)
    ties = np.flatnonzero(keys == np.uint64(threshold))
    keep[ties[:ties_allowed]] = True
    return keep
