"""Groups of duplicates: compared with following every link, for any number of buckets, and in a run's report."""

from __future__ import annotations

from collections import defaultdict
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest

from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.report.duplicates import BINS_EACH_SIDE, COPIES_SHOWN, GROUPS_SHOWN, GroupSummary, groups_of
from orchestrator.report.schema_pairs import Duplicates
from orchestrator.report.write import build_report
from orchestrator.selection.similarity import Compared, Similarity
from tests.support.geometry_pool import COPIES, EPS, NUM_COPIES


@pytest.fixture(scope="module")
def found(clustered: RunRecord) -> Duplicates:
    return build_report(clustered).duplicates["semdedup"]


def chains(num_pairs: int, num_clusters: int, *, seed: int) -> list[Compared]:
    """Return one bucket per cluster; each pair links to a random earlier pair of a random order."""
    rng = np.random.default_rng(seed)
    buckets = []
    for ordinals in np.array_split(rng.permutation(num_pairs), num_clusters):
        earlier = [-1, *(ordinals[rng.integers(0, place)] for place in range(1, len(ordinals)))]
        cosines = np.concatenate([[-np.inf], rng.uniform(0.5, 1, len(ordinals) - 1)]).astype(np.float32)
        shuffled = rng.permutation(len(ordinals))
        buckets.append(Compared(ordinals[shuffled], cosines[shuffled], np.array(earlier)[shuffled]))
    return buckets


def walked(buckets: list[Compared], eps: float) -> dict[int, dict[int, float]]:
    """Follow every link; return the copies and their cosines by root."""
    link, cosine = {}, {}
    for bucket in buckets:
        for ordinal, similarity, earlier in zip(*(column.tolist() for column in bucket), strict=True):
            if np.float32(similarity) > np.float32(1 - eps):
                link[ordinal], cosine[ordinal] = earlier, similarity
    groups: dict[int, dict[int, float]] = defaultdict(dict)
    for ordinal in link:
        root = ordinal
        while root in link:
            root = link[root]
        groups[root][ordinal] = cosine[ordinal]
    return groups


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.2, 0.4999, 2.0])
def test_groups_agree_with_following_every_link(eps: float) -> None:
    buckets = chains(3000, 7, seed=round(100 * eps))
    shown, expected = reduce(GroupSummary.__add__, (groups_of(bucket, eps) for bucket in buckets)), walked(buckets, eps)
    sizes = sorted((-len(copies), root) for root, copies in expected.items())
    assert (shown.num_groups, shown.groups_of_two) == (len(sizes), sum(size == -1 for size, _ in sizes))
    assert [(-group.num_copies, group.root) for group in shown.largest] == sizes[:GROUPS_SHOWN]
    for group in shown.largest:
        assert len(group.copies) == len(dict(group.copies)) == min(group.num_copies, COPIES_SHOWN)
        assert group.copies == sorted(group.copies, key=lambda copy: -copy[1])
        assert dict(group.copies).items() <= expected[group.root].items()
    assert shown.histogram[BINS_EACH_SIDE:].sum() == sum(map(len, expected.values()))
    assert shown.histogram.sum() == 3000 - 7


def test_result_does_not_depend_on_buckets() -> None:
    buckets = chains(800, 6, seed=1)
    joined = Compared(*(np.concatenate(columns) for columns in zip(*buckets, strict=True)))
    apart, at_once = (
        reduce(GroupSummary.__add__, (groups_of(bucket, 0.1) for bucket in buckets)),
        groups_of(joined, 0.1),
    )
    assert apart.largest == at_once.largest
    assert (apart.num_groups, apart.groups_of_two) == (at_once.num_groups, at_once.groups_of_two)
    np.testing.assert_array_equal(apart.histogram, at_once.histogram)


def test_pair_at_the_threshold_is_kept() -> None:
    at = np.array([-np.inf, np.float32(1 - 0.07), np.nextafter(np.float32(1 - 0.07), np.float32(2))], np.float32)
    shown = groups_of(Compared(np.arange(3), at, np.array([-1, 0, 0])), 0.07)
    assert [group.copies for group in shown.largest] == [[(2, float(at[2]))]]
    assert shown.histogram[[BINS_EACH_SIDE - 1, BINS_EACH_SIDE]].tolist() == [1, 1]


def test_planted_copies_are_the_groups(found: Duplicates) -> None:
    assert (found.num_duplicates, found.num_groups, found.groups_of_two) == (NUM_COPIES, len(COPIES), 1)
    shown = [{pair.key for pair in (group.kept, *group.copies)} for group in found.largest]
    assert shown == [set(keys) for keys in COPIES.values()]
    assert [group.num_copies for group in found.largest] == [len(keys) - 1 for keys in COPIES.values()]
    assert all(pair.score is not None and pair.score > 1 - EPS for group in found.largest for pair in group.copies)


def test_first_pair_of_a_group_is_kept(clustered: RunRecord, found: Duplicates) -> None:
    keep = clustered.find(Role.KEEP, "semdedup")
    assert keep is not None
    rows = Catalog(clustered.of_kind("catalog")[0]).rows_per_part
    for group in found.largest:
        kept = [KeepList(keep).mask(p.part, rows[p.part])[p.row] for p in (group.kept, *group.copies)]
        assert kept == [True, *[False] * group.num_copies]


def test_histogram_counts_every_compared_pair(clustered: RunRecord, found: Duplicates) -> None:
    collected, catalog = clustered.find(Role.COLLECT_SIMILARITY, "semdedup"), Catalog(clustered.of_kind("catalog")[0])
    assert collected is not None
    similarity = Similarity(collected, catalog)
    cosines = np.concatenate([similarity.of_part(part)[0] for part in range(len(catalog.rows_per_part))])
    cosines = cosines[np.isfinite(cosines)]
    edges = np.array(found.similarity.edges)
    counts = [int(((cosines > low) & (cosines <= high)).sum()) for low, high in pairwise(edges)]
    assert found.similarity.counts == counts
    assert sum(counts) == len(cosines)
    assert np.abs(edges - (1 - EPS)).min() < 1e-9
