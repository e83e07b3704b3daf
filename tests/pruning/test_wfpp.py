"""Compare WFPP with its definition in plain Python and with a worked example."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import polars as pl
import pytest

from orchestrator.pruning.caption_words import caption_words, reference_words
from orchestrator.pruning.wfpp import (
    WordTable,
    count_words,
    discard_probabilities,
    merge_counts,
    scores,
    word_bucket,
)

EXAMPLE = (
    ["a dog on a beach"] * 6
    + ["a cat"] * 5
    + ["a photo of a dog"] * 4
    + ["A photo of a zebra!"] * 2
    + ["zebra", "", "the the the the the"]
)
MIN_COUNT = 5


def defined_scores(
    captions: list[str | None],
    *,
    t: float,
    min_count: int = MIN_COUNT,
    max_words: int = 30,
    length_normalised: bool = True,
    clip_negative: bool = False,
) -> list[float]:
    """Return the scores of the definition, one caption and one word at a time."""
    word_lists = [reference_words(caption or "") for caption in captions]
    counts = Counter(word for words in word_lists for word in words)
    kept = {word: count for word, count in counts.items() if count >= min_count}
    total = sum(kept.values())
    result = []
    for words in word_lists:
        product = 1.0
        for word in words[:max_words]:
            if word in kept:
                p = 1 - math.sqrt(t / (kept[word] / total))
                product *= p if p >= 0 else 0.0 if clip_negative else 1.0
        num_words = len(words[:max_words]) if length_normalised else 1
        result.append((1 - product) / num_words if words else -math.inf)
    return result


def computed_scores(captions: pl.Series, *, t: float, **options: int | bool) -> list[float]:
    words = caption_words(captions)
    kept = count_words(words).filter(pl.col("count") >= MIN_COUNT)
    table = WordTable.from_probabilities(discard_probabilities(kept, int(kept["count"].sum()), t=t))
    return scores(words, table, **options).tolist()


def test_worked_example_counts() -> None:
    kept = count_words(caption_words(pl.Series(EXAMPLE))).filter(pl.col("count") >= MIN_COUNT)
    expected = {"a": 29, "dog": 10, "on": 6, "beach": 6, "cat": 5, "photo": 6, "of": 6, "the": 5}
    assert dict(kept.iter_rows()) == expected
    assert kept.schema == {"word": pl.String, "count": pl.UInt64}
    assert kept["count"].sum() == 73


@pytest.mark.parametrize(
    ("t", "expected_p", "expected_s"),
    [
        (
            1e-7,
            {"a": ".99949828", "dog": ".9991456", "on": ".99889697", "cat": ".9987917"},
            {
                "the the the the the": ".001205388123",
                "a cat": ".0008547097704",
                "a dog on a beach": ".0008114951393",
                "a photo of a dog": ".0008114951393",
                "A photo of a zebra!": ".0005343023951",
                "zebra": "0",
            },
        ),
        (
            1e-2,
            {"a": ".84134183", "dog": ".72981488", "cat": ".61790054"},
            {
                "a cat": ".2400672148",
                "the the the the the": ".1819854733",
                "a dog on a beach": ".1561866495",
                "A photo of a zebra!": ".1166387397",
            },
        ),
    ],
)
def test_worked_example(t: float, expected_p: dict[str, str], expected_s: dict[str, str]) -> None:
    kept = count_words(caption_words(pl.Series(EXAMPLE))).filter(pl.col("count") >= MIN_COUNT)
    p = dict(discard_probabilities(kept, 73, t=t).iter_rows())
    s = dict(zip(EXAMPLE, computed_scores(pl.Series(EXAMPLE), t=t), strict=True))
    for found, expected in ((p, expected_p), (s, expected_s)):
        for name, digits in expected.items():
            assert found[name] == pytest.approx(float(digits), abs=0.5 * 10 ** -len(digits[1:]))
    assert s["zebra"] == 0.0
    assert s[""] == -math.inf


@pytest.mark.parametrize("t", [1e-7, 1e-4, 1e-2])
@pytest.mark.parametrize(
    "options", [{}, {"clip_negative": True}, {"length_normalised": False}, {"max_words": 3}], ids=str
)
def test_scores_equal_the_definition_exactly(
    demo_captions: pl.Series, t: float, options: dict[str, bool | int]
) -> None:
    special = [None, "", "  ", "é’", "&amp;amp; &lt;b&gt;", "CafÃ© à la crème", "zebra dog " * 500, "qqqq xyzzy"]
    captions = pl.concat([demo_captions, pl.Series(special)]).shuffle(seed=3)
    expected = defined_scores(captions.to_list(), t=t, **options)
    assert computed_scores(captions, t=t, **options) == expected


def test_negative_probabilities_occur_and_differ_by_option(demo_captions: pl.Series) -> None:
    default = computed_scores(demo_captions, t=1e-2)
    clipped = computed_scores(demo_captions, t=1e-2, clip_negative=True)
    assert sum(a != b for a, b in zip(default, clipped, strict=True)) > 1000


def test_counts_and_scores_do_not_depend_on_the_parts(demo_captions: pl.Series) -> None:
    words = caption_words(demo_captions)
    whole = count_words(words)
    bounds = np.linspace(0, len(words), 8).astype(int)
    parts = [words[int(start) : int(end)] for start, end in itertools.pairwise(bounds)]
    assert merge_counts([count_words(part) for part in parts]).equals(whole)
    table = WordTable.from_probabilities(discard_probabilities(whole, int(whole["count"].sum()), t=1e-7))
    by_part = np.concatenate([scores(part, table) for part in parts])
    np.testing.assert_array_equal(by_part, scores(words, table))


def test_counting_by_bucket_gives_the_same_probabilities(demo_captions: pl.Series) -> None:
    counts = count_words(caption_words(demo_captions))
    total = int(counts["count"].sum())
    buckets = counts.with_columns(bucket=word_bucket(counts["word"], 5)).partition_by("bucket", include_key=False)
    assert len(buckets) == 5
    assert max(map(len, buckets)) < 1.2 * min(map(len, buckets))
    joined = pl.concat([discard_probabilities(bucket, total, t=1e-7) for bucket in buckets]).sort("word")
    assert joined.equals(discard_probabilities(counts, total, t=1e-7))


def test_word_bucket_never_changes() -> None:
    """The bucket is XXH64 with seed 0. Artifacts are partitioned by it, so it is part of the file format."""
    assert word_bucket(pl.Series(["", "a", "abc"]), 2**32).to_list() == [
        0xEF46DB3751D8E999 % 2**32,
        0xD24EC4F1A98C6E5B % 2**32,
        0x44BC2CF5AD770999 % 2**32,
    ]


def test_empty_input_and_unknown_words() -> None:
    no_words = caption_words(pl.Series([None, ""], dtype=pl.String))
    assert count_words(no_words).schema == {"word": pl.String, "count": pl.UInt64}
    assert count_words(no_words).is_empty()
    assert merge_counts([]).equals(count_words(no_words))
    empty_table = WordTable.from_probabilities(discard_probabilities(merge_counts([]), 0, t=1e-7))
    assert scores(no_words, empty_table).tolist() == [-math.inf, -math.inf]
    assert scores(caption_words(pl.Series(["a b"])), empty_table).tolist() == [0.0]
    assert scores(caption_words(pl.Series([], dtype=pl.String)), empty_table).tolist() == []


def test_lookup_finds_exactly_the_words_of_the_table() -> None:
    table = WordTable.from_probabilities(pl.DataFrame({"word": ["m", "é", "c"], "p": [0.1, 0.2, 0.3]}))
    asked = pl.Series(["", "a", "c", "cc", "é", "m", "z", "語"])
    assert table.lookup(asked).to_list() == [None, None, 0.3, None, 0.2, 0.1, None, None]
