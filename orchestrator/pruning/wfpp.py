"""WFPP: word-frequency-based pruning (arXiv 2410.10879), as the authors' published code computes it.

A word of count c among `total` counted words has f(w) = c / total and is discarded with P(w) = 1 - sqrt(t / f(w)),
the subsampling of word2vec. A caption with the first n <= 30 words w_1 .. w_n scores S = (1 - P(w_1) * .. * P(w_n))
/ n; the highest scores are kept. Words too rare to have a P count in n with factor 1, and so do words of negative P.
Products are formed in word order, so every score equals the result of a plain loop over the caption, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

COUNT_SCHEMA = pl.Schema({"word": pl.String, "count": pl.UInt64})


def count_words(words: pl.Series) -> pl.DataFrame:
    """Occurrences of every word over whole captions.

    Args:
        words: List[String] [n], the words of each caption.

    Returns:
        word (String), count (UInt64); each word once, sorted by word.
    """
    occurrences = words.filter(words.list.len() > 0).explode().alias("word").to_frame()
    return occurrences.group_by("word").agg(pl.len().alias("count")).cast(COUNT_SCHEMA).sort("word")


def merge_counts(counts: list[pl.DataFrame]) -> pl.DataFrame:
    """The sum of tables that `count_words` returned, in the same form."""
    empty = pl.DataFrame(schema=COUNT_SCHEMA)
    return pl.concat([empty, *counts]).group_by("word").agg(pl.col("count").sum()).sort("word")


def word_bucket(words: pl.Series, num_buckets: int) -> pl.Series:
    """The bucket of each word, UInt32 [n] in [0, num_buckets): XXH64 of its UTF-8 bytes, the same on every machine.

    `words` is String [n] without nulls. A Python loop: call it with the distinct words of a part.
    """
    hashes = [xxhash.xxh64_intdigest(word.encode()) % num_buckets for word in words]
    return pl.Series("bucket", hashes, dtype=pl.UInt32)


def discard_probabilities(counts: pl.DataFrame, total: int, *, t: float) -> pl.DataFrame:
    """P(w) = 1 - sqrt(t / (count / total)) of each word in `counts`.

    Args:
        counts: word, count; only words with at least the minimum count.
        total: sum of the counts of *all* such words, also when `counts` holds only some of them.
        t: threshold frequency, 1e-7 in the paper.

    Returns:
        word (String), p (Float64, negative where f(w) < t), in the order of `counts`.
    """
    frequency = counts["count"].to_numpy().astype(np.float64) / float(total)
    return pl.DataFrame({"word": counts["word"], "p": 1.0 - np.sqrt(t / frequency)})


@dataclass(frozen=True)
class WordTable:
    """Discard probabilities for look-up: built once in each process, then used for any number of batches.

    The words are sorted and found by bisection. A call takes as long as with a dictionary (5 M words, 15 k look-ups: 10
    ms and 15 ms), without tens of millions of Python objects; a join would build a hash table of all words for every
    batch.
    """

    words: pl.Series
    p: pl.Series

    @classmethod
    def from_probabilities(cls, probabilities: pl.DataFrame) -> WordTable:
        """The table of word (String, each once) and p (Float64), in any order."""
        ordered = probabilities.sort("word")
        return cls(words=ordered["word"].rechunk(), p=ordered["p"].rechunk())

    def lookup(self, words: pl.Series) -> pl.Series:
        """P of each word, Float64 [n] for String [n]; null for a word that is not in the table."""
        if self.words.is_empty():
            return pl.repeat(None, len(words), dtype=pl.Float64, eager=True)
        nearest = self.words.search_sorted(words).clip(upper_bound=len(self.words) - 1)
        found = self.words.gather(nearest) == words
        return self.p.gather(nearest).set(~found, None)


def scores(
    words: pl.Series,
    probabilities: WordTable,
    *,
    max_words: int = 30,
    length_normalised: bool = True,
    clip_negative: bool = False,
) -> NDArray[np.float64]:
    """S of each caption; higher is kept first.

    Args:
        words: List[String] [n], the words of each caption.
        probabilities: P of all words with the minimum count.
        max_words: how many words of a caption count.
        length_normalised: False gives 1 - prod P(w_i), without the division by the number of words.
        clip_negative: True replaces a negative P by 0 (word2vec), False uses factor 1 (the reference).

    Returns:
        float64 [n]; 0 for a caption with rare words only, -inf for a caption without words.
    """
    considered = words.list.head(max_words)
    lengths = considered.list.len().to_numpy().astype(np.int64)
    has_words = lengths > 0
    flat = considered.filter(pl.Series(has_words)).explode()
    products = _ragged_products(_factors(flat, probabilities, clip_negative=clip_negative), lengths[has_words])
    result = np.full(len(words), -np.inf)
    result[has_words] = (1.0 - products) / (lengths[has_words] if length_normalised else 1)
    return result


def _factors(flat: pl.Series, probabilities: WordTable, *, clip_negative: bool) -> NDArray[np.float64]:
    """The factor of each occurrence in the product, with one look-up for each distinct word."""
    # Arrow encodes in one pass; Polars would hash every occurrence for `unique`, and again to map it
    encoded = flat.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    p = probabilities.lookup(pl.Series("word", encoded.dictionary, dtype=pl.String))
    factor = p.set(p < 0.0, 0.0 if clip_negative else 1.0).fill_null(1.0)
    return factor.to_numpy()[encoded.indices.to_numpy()]


def _ragged_products(factors: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Products of consecutive runs of `lengths` (all > 0), each strictly left to right."""
    starts = np.cumsum(lengths) - lengths
    products = factors[starts]
    for position in range(1, int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > position)
        products[rows] *= factors[starts[rows] + position]
    return products
