"""MetaCLIP's balancing (arXiv 2309.16671): pairs are thinned out where many captions contain the same entries of a
metadata list.

A caption contains an entry if " entry " is a substring, case included, of the spaced caption: the caption between two
blanks, with blanks around each of , . ; : ? ! ` and a blank for every tab and line end. An entry in `count` captions is
kept with p = t / max(count, t), and a caption with 1 - prod(1 - p) over its entries: never if it has none. Matching is
by an Aho-Corasick automaton; matches may overlap and share a blank.
"""

from __future__ import annotations

from collections.abc import Sequence

import ahocorasick_rs
import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.pruning.order import random_keys


class Matcher:
    """Finds the entries in captions: built once in each process, then used for any number of batches."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.num_entries = len(entries)
        self._automaton = ahocorasick_rs.AhoCorasick([f" {entry} " for entry in entries], store_patterns=False)

    def matches(self, captions: pl.Series) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The entries in each caption, each once.

        Args:
            captions: String [n]; null contains nothing.

        Returns:
            num_matches int64 [n]; entries int64 [sum of num_matches], ascending within a caption.
        """
        found = [self._entries(caption) for caption in spaced(captions)]
        num_matches = np.fromiter(map(len, found), np.int64, len(found))
        return num_matches, np.fromiter((entry for one in found for entry in one), np.int64, int(num_matches.sum()))

    def counts(self, captions: pl.Series) -> NDArray[np.int64]:
        """How many of the captions String [n] contain each entry, int64 [num_entries]."""
        return np.bincount(self.matches(captions)[1], minlength=self.num_entries)

    def keep_probabilities(self, captions: pl.Series, entry_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability of each caption to be kept, float64 [n].

        Args:
            captions: String [n]; null contains nothing.
            entry_probabilities: [num_entries], the result of `entry_probabilities`.
        """
        num_matches, entries = self.matches(captions)
        matched = num_matches > 0
        starts = (np.cumsum(num_matches) - num_matches)[matched]
        result = np.zeros(len(captions))
        if starts.size:
            result[matched] = 1 - np.multiply.reduceat(1 - entry_probabilities[entries], starts)
        return result

    def _entries(self, caption: str | None) -> list[int]:
        if caption is None:
            return []
        return sorted({match[0] for match in self._automaton.find_matches_as_indexes(caption, overlapping=True)})


def spaced(captions: pl.Series) -> pl.Series:
    """The spaced captions String [n], in which entries are searched; null stays null."""
    apart = (" " + captions + " ").str.replace_all("[,.;:?!`]", " ${0} ")
    return apart.str.replace_all("[\t\n\r]", " ")


def entry_probabilities(counts: NDArray[np.int64], t: float) -> NDArray[np.float64]:
    """p of each entry, float64 [num_entries], from the number of captions that contain it; for 400 million pairs, `t`
    is 20,000."""
    return t / np.maximum(counts, t)


def keep(probabilities: NDArray[np.float64], seed: int, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Draw the pairs with the given global ordinals [n], each with its probability [n]: bool [n].

    A pair is kept if a number that is uniform in [0, 1), and depends on seed and ordinal alone, is below its
    probability. `seed` is that of the step's own stream (`pruning.order.step_seed`).
    """
    # a float64 has 53 bits: the upper 53 bits of the key, times 2**-53
    uniform = (random_keys(seed, ordinals) >> np.uint64(11)) * 2.0**-53
    return uniform < probabilities
