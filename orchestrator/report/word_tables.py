"""Compare word frequencies before and after pruning, with one hash bucket of words in memory at a time.

The rank-frequency curve needs no sorted list of words. rank(c) is the number of words with at least c occurrences, so a
histogram of counts gives the exact curve. Both tables use the same buckets, so both counts of a word are in the same
bucket."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.report.schema import FrequencyBand, WordChange, Words, WordStatistics
from orchestrator.selection.word_counts import read_bucket

CURVE_POINTS = 200
TOP_WORDS = 100
COMPARED_WORDS = 500
SHOWN_WORDS = 12
CHANGE_SCHEMA = {"word": pl.String, "before": pl.Int64, "after": pl.Int64}


def word_tables(record: RunRecord) -> tuple[Artifact, Artifact] | None:
    """Return the word tables before and after pruning. If WFPP is the first step, its own table is the one before."""
    after = record.find(Role.SUM_WORDS_AFTER)
    before = record.find(Role.SUM_WORDS_BEFORE) or next(iter(record.of_kind("words")), None)
    return None if before is None or after is None else (before, after)


def compare_words(before: Artifact, after: Artifact) -> Words:
    """Return statistics, frequency bands, and the words that pruning affects most and least."""
    min_count = before.made_from["min_count"]
    histograms: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    bands: dict[int, NDArray[np.int64]] = {}
    frequent = pl.DataFrame(schema=CHANGE_SCHEMA)
    assert len(before.parts) == len(after.parts), "both tables come from the same pool, so they have the same buckets"
    for index in range(len(before.parts)):
        now = read_bucket(after, index).cast({"count": pl.Int64})
        both = (
            read_bucket(before, index)
            .cast({"count": pl.Int64})
            .rename({"count": "before"})
            .join(now.rename({"count": "after"}), on="word", how="left")
            .with_columns(pl.col("after").fill_null(0))
        )
        _add_counts(histograms[0], both["before"])
        _add_counts(histograms[1], now["count"])
        _add_bands(bands, both)
        frequent = _most_frequent(pl.concat([frequent, both.select("word", "before", "after")]))
    most, least = _affected(frequent)
    return Words(
        min_count=min_count,
        before=_statistics(before, histograms[0], min_count),
        after=_statistics(after, histograms[1], min_count),
        bands=_band_list(bands),
        compared_words=len(frequent),
        most_affected=most,
        least_affected=least,
    )


def _add_counts(histogram: Counter[int], counts: pl.Series) -> None:
    values, numbers = np.unique(counts.to_numpy(), return_counts=True)
    for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
        histogram[value] += number


def _add_bands(bands: dict[int, NDArray[np.int64]], both: pl.DataFrame) -> None:
    # bit length of a count: one band for each power of two
    octaves = np.frexp(both["before"].to_numpy().astype(np.float64))[1]
    for octave in np.unique(octaves).tolist():
        rows = both.filter(pl.Series(octaves == octave))
        sums = np.array([len(rows), rows["before"].sum(), rows["after"].sum()], np.int64)
        bands[octave] = bands.get(octave, 0) + sums


def _band_list(bands: dict[int, NDArray[np.int64]]) -> list[FrequencyBand]:
    return [
        FrequencyBand(
            at_least=2 ** (octave - 1), below=2**octave, words=int(words), before=int(before), after=int(after)
        )
        for octave, (words, before, after) in sorted(bands.items())
    ]


def _most_frequent(changes: pl.DataFrame) -> pl.DataFrame:
    return changes.sort("before", "word", descending=[True, False]).head(COMPARED_WORDS)


def _affected(frequent: pl.DataFrame) -> tuple[list[WordChange], list[WordChange]]:
    shares = frequent.with_columns(kept_share=pl.col("after") / pl.col("before"))
    shown = min(SHOWN_WORDS, len(shares) // 2)
    most = shares.sort("kept_share", "before", "word", descending=[False, True, False]).head(shown)
    least = shares.sort("kept_share", "before", "word", descending=[True, True, False]).head(shown)
    return [WordChange(**row) for row in most.to_dicts()], [WordChange(**row) for row in least.to_dicts()]


def _statistics(words: Artifact, histogram: Counter[int], min_count: int) -> WordStatistics:
    totals = words.totals
    counts = np.array(sorted(histogram, reverse=True), np.int64)
    numbers = np.array([histogram[count] for count in counts.tolist()], np.int64)
    is_frequent = counts >= min_count
    return WordStatistics(
        distinct=totals["words"],
        occurrences=totals["occurrences"],
        frequent_distinct=int(numbers[is_frequent].sum()),
        top_100_share=_top_occurrences(counts[is_frequent], numbers[is_frequent]) / max(1, totals["occurrences"]),
        entropy_bits=_entropy_bits(counts[is_frequent], numbers[is_frequent]),
        curve=_curve(counts[is_frequent], numbers[is_frequent]),
    )


def _top_occurrences(counts: NDArray[np.int64], numbers: NDArray[np.int64]) -> int:
    before = np.cumsum(numbers) - numbers
    return int((counts * np.clip(TOP_WORDS - before, 0, numbers)).sum())


def _entropy_bits(counts: NDArray[np.int64], numbers: NDArray[np.int64]) -> float:
    total = (counts * numbers).sum()
    if total == 0:
        return 0.0
    p = counts / total
    return float(-(numbers * p * np.log2(p)).sum()) + 0.0


def _curve(counts: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    if len(counts) == 0:
        return []
    last_rank = np.cumsum(numbers)
    ranks = np.unique(np.geomspace(1, last_rank[-1], CURVE_POINTS).round().astype(np.int64))
    return list(zip(ranks.tolist(), counts[np.searchsorted(last_rank, ranks)].tolist(), strict=True))
