"""One property check for every selector.

A selector keeps exactly its budget, or exactly the pairs that pass its rule. It keeps no pair twice. The result is
deterministic and does not depend on how the pool is split into parts. Embeddings, clusters and distances are given."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from orchestrator.pruning.caption_words import caption_words
from orchestrator.pruning.filters import Reason, basic_reasons
from orchestrator.pruning.metaclip import Matcher, entry_probabilities, keep
from orchestrator.pruning.order import order_keys, random_scores
from orchestrator.pruning.quotas import complexities, first_quotas, inter_distances, quotas, shares
from orchestrator.pruning.semdedup import max_earlier_similarity
from orchestrator.pruning.threshold import budget, sortable
from orchestrator.pruning.wfpp import WordTable, count_words, discard_probabilities, merge_counts, scores
from tests.support.cuts import cut_parts

Keys = NDArray[np.uint64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

NUM_CLUSTERS = 12
EPS = 0.1
T = 20


@dataclass(frozen=True)
class Part:
    """Consecutive pairs with the columns that selectors read. `first_ordinal` is the number of pairs before them."""

    first_ordinal: int
    captions: pl.Series
    sides: Ints
    vectors: NDArray[np.float16]
    clusters: Ints
    distances: NDArray[np.float32]
    clip_scores: NDArray[np.float32]

    @property
    def ordinals(self) -> Ints:
        return self.first_ordinal + np.arange(len(self.captions))

    def rows(self, start: int, end: int) -> Part:
        return Part(
            self.first_ordinal + start,
            self.captions[start:end],
            self.sides[start:end],
            self.vectors[start:end],
            self.clusters[start:end],
            self.distances[start:end],
            self.clip_scores[start:end],
        )


Parts = Sequence[Part]
Select = Callable[[Parts, int, int], Mask]


def centroids() -> NDArray[np.float32]:
    vectors = np.random.default_rng(1).standard_normal((NUM_CLUSTERS, 24))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def pool(demo_captions: pl.Series) -> Part:
    """A pool with missing captions, captions that occur three times, copies and ties.

    One cluster has half of the pairs, another one has none."""
    captions = pl.concat([demo_captions.head(700)] * 3 + [pl.Series([None, ""] * 100)])
    rng = np.random.default_rng(2)
    num_pairs = len(captions)
    clusters = rng.choice(NUM_CLUSTERS, num_pairs, p=[0.5, 0, *[0.05] * (NUM_CLUSTERS - 2)])
    vectors = centroids()[clusters] + 0.15 * rng.standard_normal((num_pairs, 24))
    twin = rng.integers(0, num_pairs, 300)
    vectors[:300], clusters[:300] = vectors[twin], clusters[twin]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    distances = np.round(1 - (vectors * centroids()[clusters]).sum(axis=1), 2).astype(np.float32)
    clip_scores = np.round(rng.random(num_pairs), 3).astype(np.float32)
    return Part(0, captions, rng.integers(150, 1000, (num_pairs, 2)), vectors, clusters, distances, clip_scores)


def split(pool: Part, num_parts: int) -> list[Part]:
    """Split the pool into parts of very different sizes, some of them empty."""
    bounds = np.sort(np.random.default_rng(num_parts).integers(0, len(pool.captions), num_parts - 1))
    bounds = np.concatenate([[0], bounds, bounds[-1:], [len(pool.captions)]])
    return [pool.rows(int(start), int(end)) for start, end in itertools.pairwise(bounds)]


def highest(keys: Sequence[Keys], num_kept: int) -> Mask:
    return cut_parts(keys, [np.zeros(len(part), np.int64) for part in keys], np.array([num_kept]))


def wfpp(parts: Parts, num_kept: int, seed: int) -> Mask:
    words = [caption_words(part.captions) for part in parts]
    counts = merge_counts([count_words(part) for part in words]).filter(pl.col("count") >= 5)
    table = WordTable.from_probabilities(discard_probabilities(counts, int(counts["count"].sum()), t=1e-7))
    return highest([sortable(scores(part, table)) for part in words], num_kept)


def random(parts: Parts, num_kept: int, seed: int) -> Mask:
    return highest([random_scores(seed, part.first_ordinal, len(part.captions)) for part in parts], num_kept)


def clip_score(parts: Parts, num_kept: int, seed: int) -> Mask:
    return highest([sortable(part.clip_scores) for part in parts], num_kept)


def sizes_of(parts: Parts) -> Ints:
    return sum((np.bincount(part.clusters, minlength=NUM_CLUSTERS) for part in parts), np.zeros(NUM_CLUSTERS, np.int64))


def ssp(parts: Parts, num_kept: int, seed: int) -> Mask:
    keys = [sortable(part.distances) for part in parts]
    first = cut_parts(keys, [part.clusters for part in parts], first_quotas(sizes_of(parts), num_kept, 0.5))
    given = np.split(first, [part.first_ordinal for part in parts[1:]])
    left = [part[~taken] for part, taken in zip(keys, given, strict=True)]
    kept = first.copy()
    kept[np.flatnonzero(~first)[highest(left, num_kept - int(first.sum()))]] = True
    return kept


def dbp(parts: Parts, num_kept: int, seed: int) -> Mask:
    sizes = sizes_of(parts)
    sums = np.zeros(NUM_CLUSTERS)
    for part in parts:
        np.add.at(sums, part.clusters, part.distances.astype(np.float64))
    intra = np.round(sums, 6) / np.maximum(sizes, 1)
    share = shares(complexities(intra, inter_distances(centroids(), 5)), sizes, 0.01)
    keys = [order_keys(part.distances, part.ordinals, "random", seed) for part in parts]
    return cut_parts(keys, [part.clusters for part in parts], quotas(share, sizes, num_kept, 0.0))


def semdedup(parts: Parts, num_kept: int, seed: int) -> Mask:
    clusters, distances, vectors, ordinals = (
        np.concatenate([getattr(part, name) for part in reversed(parts)])
        for name in ("clusters", "distances", "vectors", "ordinals")
    )
    order = np.lexsort((ordinals, ~order_keys(distances, ordinals, "hard", seed), clusters))
    kept = np.empty(len(ordinals), bool)
    for members in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        kept[ordinals[members]] = max_earlier_similarity(vectors[members], 64)[0] <= 1 - EPS
    return kept


ENTRIES = ["a", "the", "of", "a photo", "clip art", "red", "face", "never there"]


def metaclip(parts: Parts, num_kept: int, seed: int) -> Mask:
    matcher = Matcher(ENTRIES)
    counts = sum((matcher.counts(part.captions) for part in parts), np.zeros(len(ENTRIES), np.int64))
    p = entry_probabilities(counts, T)
    return np.concatenate([keep(matcher.keep_probabilities(part.captions, p), seed, part.ordinals) for part in parts])


def basic(parts: Parts, num_kept: int, seed: int) -> Mask:
    reasons = [basic_reasons(part.captions, *(pl.Series(side) for side in part.sides.T)) for part in parts]
    return np.concatenate(reasons) == Reason.PASSES


BUDGETED: dict[str, Select] = {"wfpp": wfpp, "random": random, "clip_score": clip_score, "ssp": ssp, "dbp": dbp}
FILTERS: dict[str, Select] = {"semdedup": semdedup, "metaclip": metaclip, "basic": basic}
SEEDED = {"random", "dbp", "metaclip"}


def semdedup_rule(pool: Part) -> Mask:
    kept = np.ones(len(pool.captions), bool)
    for cluster in range(NUM_CLUSTERS):
        members = np.flatnonzero(pool.clusters == cluster)
        members = members[np.argsort(-pool.distances[members], kind="stable")]
        vectors = pool.vectors[members].astype(np.float64)
        cosines = np.tril(vectors @ vectors.T, -1)
        assert (np.abs(cosines - (1 - EPS)) > 1e-7).all(), (
            "the test data has no pair so near the threshold that rounding decides"
        )
        kept[members] = ~(cosines > 1 - EPS).any(axis=1)
    return kept


def metaclip_rule(pool: Part) -> Mask:
    texts = [re.sub("[,.;:?!`]", r" \g<0> ", f" {caption} ") if caption else "" for caption in pool.captions]
    held = np.array([[f" {entry} " in re.sub("[\t\n\r]", " ", text) for entry in ENTRIES] for text in texts])
    p = T / np.maximum(held.sum(axis=0), T)
    return keep(1 - np.where(held, 1 - p, 1).prod(axis=1), 5, pool.ordinals)


def basic_rule(pool: Part) -> Mask:
    long = [len((caption or "").split()) > 2 and len(caption or "") > 5 for caption in pool.captions]
    short_side, long_side = pool.sides.min(axis=1), pool.sides.max(axis=1)
    return np.array(long) & (short_side >= 200) & (long_side / short_side <= 3)


RULES = {"semdedup": semdedup_rule, "metaclip": metaclip_rule, "basic": basic_rule}


@pytest.mark.parametrize("keep_fraction", [0.01, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("name", BUDGETED)
def test_budgeted_selectors_keep_exactly_their_budget(pool: Part, name: str, keep_fraction: float) -> None:
    num_kept = budget(len(pool.captions), keep_fraction)
    assert_properties(pool, name, BUDGETED[name], num_kept)
    kept = BUDGETED[name]([pool], num_kept, 5)
    assert kept.sum() == num_kept, "exactly the budget; a mask cannot keep a pair twice"


@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_exactly_the_pairs_that_pass(pool: Part, name: str) -> None:
    assert_properties(pool, name, FILTERS[name], 0)
    kept = FILTERS[name]([pool], 0, 5)
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(kept, RULES[name](pool))


def assert_properties(pool: Part, name: str, select: Select, num_kept: int) -> None:
    """Check that the result is independent of parts, deterministic, and depends on the seed only if it should."""
    whole = select([pool], num_kept, 5)
    assert whole.dtype == bool
    assert len(whole) == len(pool.captions)
    for num_parts in (7, 100):
        np.testing.assert_array_equal(select(split(pool, num_parts), num_kept, 5), whole)
    np.testing.assert_array_equal(select([pool], num_kept, 5), whole)
    if num_kept < len(pool.captions):
        assert (select([pool], num_kept, 6) != whole).any() == (name in SEEDED)


def test_wfpp_keeps_the_earlier_of_equal_captions_and_prunes_empty_ones_first(pool: Part) -> None:
    half = pool.captions.head(700)
    captions = pl.concat([pl.Series([None, "", " "]), half, half])
    twice = replace(pool.rows(0, len(captions)), captions=captions)
    odd = 981  # odd, so that at least one caption keeps only one of its two copies
    keep = wfpp(split(twice, 7), odd, 0)
    assert not keep[:3].any()
    first, second = keep[3:703], keep[703:]
    assert (first >= second).all(), "a later copy is never kept instead of an earlier one"
    assert (first & ~second).any()
    everything_but_the_empty = wfpp([twice], 1400, 0)
    np.testing.assert_array_equal(everything_but_the_empty, np.arange(1403) >= 3)
