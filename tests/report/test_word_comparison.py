"""Word statistics compared with plain counting, over several buckets."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestrator.data.catalog import to_parquet
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import part_path
from orchestrator.pruning.wfpp import COUNT_SCHEMA, word_bucket
from orchestrator.report.schema import Words
from orchestrator.report.word_tables import compare_words
from orchestrator.storage import files

NUM_BUCKETS, MIN_COUNT = 3, 5


def words_artifact(folder: Path, counts: Counter[str], *, min_count: int) -> Artifact:
    """Write a word table as its stage does."""
    artifact = Artifact.of(str(folder), "words", version=1, min_count=min_count)
    table = pl.DataFrame({"word": list(counts), "count": list(counts.values())}, schema=COUNT_SCHEMA)
    buckets = word_bucket(table["word"], NUM_BUCKETS)
    for index in range(NUM_BUCKETS):
        kept = table.filter((buckets == index) & (pl.col("count") >= min_count)).sort("count", descending=True)
        files.write(part_path(artifact, index, "parquet"), to_parquet(kept.to_arrow()))
    totals = {"words": len(counts), "occurrences": counts.total()}
    artifact.publish(totals=totals, parts=[{}] * NUM_BUCKETS, seconds=1.0)
    return artifact


BEFORE = Counter({f"word{i}": int(3000 / (i + 1)) + 1 for i in range(1500)})
DRAW = np.random.default_rng(0)
AFTER = +Counter({word: int(DRAW.integers(0, count + 1)) for word, count in BEFORE.items()})


@pytest.fixture
def words(tmp_path: Path) -> Words:
    before = words_artifact(tmp_path, BEFORE, min_count=MIN_COUNT)
    return compare_words(before, words_artifact(tmp_path, AFTER, min_count=1))


def test_comparison_agrees_with_plain_counting(words: Words) -> None:
    for found, counts in ((words.before, BEFORE), (words.after, AFTER)):
        frequent = sorted((count for count in counts.values() if count >= MIN_COUNT), reverse=True)
        assert (found.distinct, found.occurrences, found.frequent_distinct) == (
            len(counts),
            counts.total(),
            len(frequent),
        )
        assert found.top_100_share == pytest.approx(sum(frequent[:100]) / counts.total())
        entropy = -sum(count / sum(frequent) * math.log2(count / sum(frequent)) for count in frequent)
        assert found.entropy_bits == pytest.approx(entropy)
        assert found.curve[0][0] == 1
        assert found.curve[-1][0] == len(frequent)
        assert [frequent[rank - 1] for rank, _ in found.curve] == [count for _, count in found.curve]


def test_affected_words_have_the_lowest_and_highest_kept_share(words: Words) -> None:
    frequent = sorted(BEFORE, key=lambda word: (-BEFORE[word], word))[:500]
    shares = {word: AFTER[word] / BEFORE[word] for word in frequent}
    assert words.compared_words == 500
    lowest, highest = sorted(shares.values())[:12], sorted(shares.values(), reverse=True)[:12]
    assert [change.kept_share for change in words.most_affected] == pytest.approx(lowest)
    assert [change.kept_share for change in words.least_affected] == pytest.approx(highest)
    for change in words.most_affected + words.least_affected:
        assert (BEFORE[change.word], AFTER[change.word]) == (change.before, change.after)


def test_bands_contain_every_frequent_word_once(words: Words) -> None:
    for band in words.bands:
        inside = [w for w, count in BEFORE.items() if band.at_least <= count < band.below and count >= MIN_COUNT]
        assert band.words == len(inside) > 0
        assert band.before == sum(BEFORE[word] for word in inside)
        assert band.after == sum(AFTER[word] for word in inside)
    assert sum(band.words for band in words.bands) == words.before.frequent_distinct


def test_comparison_with_no_words_left(tmp_path: Path) -> None:
    before = words_artifact(tmp_path, Counter({"a": 9, "b": 2}), min_count=MIN_COUNT)
    words = compare_words(before, words_artifact(tmp_path, Counter(), min_count=1))
    assert words.after.curve == []
    assert words.after.entropy_bits == words.after.top_100_share == 0.0
    assert [(band.words, band.after) for band in words.bands] == [(1, 0)]
