"""MetaCLIP: compare matching with the literal substring definition; counts, probabilities and random choices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest

from orchestrator.pruning.metaclip import Matcher, entry_probabilities, keep, spaced
from orchestrator.pruning.order import random_keys, step_seed

ADVERSARIAL = [
    None,
    "",
    " ",
    "  ",
    "new york city",
    "new  york",
    "new york,city",
    "new york. york city!",
    "New York City",
    "new\nyork\tcity\r\nnew york",
    "newyork new yorkcity",
    "york city new york city new york",
    "a a a a",
    "a,a.a;a:a?a!a`a",
    ",.",
    ", . ",
    'don\'t; "quoted" (a) -a- a/b',
    "café naïve 東京 の 😀 a",
    "東京 の 夜景",
    "a\x00b \x00 a",
    "a\u00a0b a\u2028b",
    "$1 ${0} \\1",
    "a" * 5000 + " a " * 500,
]
ENTRIES = [
    *("new york", "york city", "new york city", "york", "a", "a a", "city", "new", "New York", "a b", "b"),
    *("", " ", ",", ". ", ",a", "don't", "café", "東京", "の", "の 夜景", "😀", "\x00", "$1", "${0}", "a\u00a0b"),
    *("new\nyork", "st. louis", "never there", "aa"),
]


def plainly_spaced(caption: str) -> str:
    apart = [f" {c} " if c in ",.;:?!`" else " " if c in "\t\n\r" else c for c in caption]
    return f" {''.join(apart)} "


def held(caption: str | None, entries: list[str]) -> list[int]:
    """Return the entries that a caption holds, as in the definition."""
    text = None if caption is None else plainly_spaced(caption)
    return [index for index, entry in enumerate(entries) if text is not None and f" {entry} " in text]


@pytest.fixture(scope="module")
def captions(demo_captions: pl.Series) -> pl.Series:
    return pl.concat([demo_captions.head(3000), pl.Series(ADVERSARIAL), demo_captions.tail(1000)])


@pytest.fixture(scope="module")
def entries(captions: pl.Series) -> list[str]:
    """Words and word pairs of the captions, some of them truncated, and adversarial entries."""
    words = [caption.split(" ") for caption in captions.drop_nulls()[::40]]
    single = {word for caption in words for word in caption}
    double = {f"{first} {second}" for caption in words for first, second in itertools.pairwise(caption)}
    return list(dict.fromkeys([*ENTRIES, *sorted(single), *sorted(double), *sorted(word[:-1] for word in single)]))


def test_spacing_equals_plain_python(captions: pl.Series) -> None:
    expected = [None if caption is None else plainly_spaced(caption) for caption in captions]
    assert spaced(captions).to_list() == expected


def test_matches_equal_the_substring_definition(captions: pl.Series, entries: list[str]) -> None:
    expected = [held(caption, entries) for caption in captions]
    num_matches, found = Matcher(entries).matches(captions)
    assert num_matches.tolist() == [len(one) for one in expected]
    assert found.tolist() == [entry for one in expected for entry in one]
    assert min(map(len, expected)) == 0
    assert max(map(len, expected)) > 10


def test_matches_that_overlap_or_share_a_space_all_count() -> None:
    matcher = Matcher(["new york", "york city", "york", "york city york city"])
    assert matcher.matches(pl.Series(["new york city york city"]))[1].tolist() == [0, 1, 2, 3]
    assert matcher.matches(pl.Series(["york york york"]))[1].tolist() == [2]


def test_a_caption_counts_once_per_entry(captions: pl.Series, entries: list[str]) -> None:
    expected = np.zeros(len(entries), np.int64)
    for caption in captions:
        expected[held(caption, entries)] += 1
    counts = Matcher(entries).counts(captions)
    np.testing.assert_array_equal(counts, expected)
    assert counts[entries.index("never there")] == 0
    parts = [captions[:17], captions[17:17], captions[17:2000], captions[2000:]]
    np.testing.assert_array_equal(sum(Matcher(entries).counts(part) for part in parts), counts)


def test_keep_probabilities_equal_the_definition(captions: pl.Series, entries: list[str]) -> None:
    p = entry_probabilities(Matcher(entries).counts(captions), 20)
    found = Matcher(entries).keep_probabilities(captions, p)
    expected = [1 - math.prod(1 - p[entry] for entry in held(caption, entries)) for caption in captions]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    unmatched = [not held(caption, entries) for caption in captions]
    assert any(unmatched)
    assert (found[unmatched] == 0).all()
    assert (found[captions.is_null().to_numpy()] == 0).all()


def test_captions_without_a_match_have_probability_zero() -> None:
    assert Matcher(["dog"]).keep_probabilities(pl.Series([], dtype=pl.String), np.array([0.5])).tolist() == []
    assert Matcher(["dog"]).keep_probabilities(pl.Series(["cat", None]), np.array([0.5])).tolist() == [0, 0]


def test_only_entries_above_t_have_a_probability_below_one() -> None:
    assert entry_probabilities(np.array([0, 1, 20, 21, 200]), 20).tolist() == [1, 1, 1, 20 / 21, 0.1]


def test_choices_follow_the_probabilities_seed_and_ordinal() -> None:
    ordinals = np.arange(200_000)
    probabilities = np.tile([0.0, 1.0, 0.1, 0.5], 50_000)
    kept = keep(probabilities, 7, ordinals)
    assert not kept[probabilities == 0].any()
    assert kept[probabilities == 1].all()
    assert abs(kept[probabilities == 0.1].mean() - 0.1) < 0.006, "4 standard deviations"
    assert abs(kept[probabilities == 0.5].mean() - 0.5) < 0.01
    shuffled = np.random.default_rng(0).permutation(ordinals)
    np.testing.assert_array_equal(keep(probabilities[shuffled], 7, shuffled), kept[shuffled])
    assert (keep(probabilities, 8, ordinals) != kept).any()


def test_choices_are_independent_of_random_pruning_with_the_same_seed() -> None:
    ordinals = np.arange(100_000)
    drawn = keep(np.full(100_000, 0.5), step_seed(3, "metaclip"), ordinals)
    random = random_keys(3, ordinals) >= np.uint64(2**63)
    assert abs((drawn & random).mean() - 0.25) < 0.006, "4 standard deviations"
