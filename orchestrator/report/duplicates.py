"""Find the groups of near-duplicates in a run, exactly.

Links never leave a cluster, and a cluster is in one bucket of the comparison. Each bucket's groups are therefore found
independently, and only counts, the largest groups and a few pairs of each are combined.

A duplicate is linked to an earlier pair in the order of its cluster, so links form trees. The root of a tree is not a
duplicate and was kept. Pointer jumping leads every pair to its root in log2(depth) rounds."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.catalog import Catalog
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import over_blocks
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord
from orchestrator.pruning.order import random_keys
from orchestrator.report.pairs import examples_at
from orchestrator.report.schema_pairs import DuplicateGroup, Duplicates, Example, SimilarityHistogram
from orchestrator.report.selected import SelectedStep
from orchestrator.selection.similarity import Compared, bucket_parts, read_compared

GROUPS_SHOWN = 8
COPIES_SHOWN = 6
SEED = int.from_bytes(b"copies", "big")
BINS_PER_UNIT = 100
# bins on each side of 1 - eps; enough for any cosine, which rounding takes only slightly outside [-1, 1]
BINS_EACH_SIDE = 2 * BINS_PER_UNIT + 1


@dataclass(frozen=True)
class Group:
    """A group: the root's ordinal, the number of copies, and (ordinal, cosine) of some copies, highest cosine first."""

    root: int
    num_copies: int
    copies: list[tuple[int, float]]


@dataclass(frozen=True)
class GroupSummary:
    """Groups in some buckets: their number, the groups of two, the largest; histogram int64 [bins] of the cosines."""

    num_groups: int
    groups_of_two: int
    largest: list[Group]
    histogram: NDArray[np.int64]

    def __add__(self, other: GroupSummary) -> GroupSummary:
        largest = heapq.nsmallest(GROUPS_SHOWN, self.largest + other.largest, key=_rank)
        return GroupSummary(
            self.num_groups + other.num_groups,
            self.groups_of_two + other.groups_of_two,
            largest,
            self.histogram + other.histogram,
        )


def _rank(group: Group) -> tuple[int, int]:
    return -group.num_copies, group.root


def duplicates(record: RunRecord, steps: list[SelectedStep]) -> dict[str, Duplicates]:
    """Return the duplicates that each step found, by step."""
    compared = ((step, record.find(Role.COMPARE, step.name)) for step in steps)
    return {
        step.name: _duplicates(step.catalog, artifact, step.settings["eps"])
        for step, artifact in compared
        if artifact is not None
    }


def _duplicates(catalog: Catalog, compared: Artifact, eps: float) -> Duplicates:
    found = reduce(GroupSummary.__add__, over_blocks(bucket_parts(compared), partial(_found_in, compared, eps)))
    scores: dict[int, float | None] = {group.root: None for group in found.largest}
    scores |= {ordinal: cosine for group in found.largest for ordinal, cosine in group.copies}
    return Duplicates(
        eps=eps,
        num_duplicates=int(found.histogram[BINS_EACH_SIDE:].sum()),
        num_groups=found.num_groups,
        groups_of_two=found.groups_of_two,
        largest=_shown(found.largest, examples_at(catalog, scores)),
        similarity=_histogram(found.histogram, eps),
    )


def _shown(groups: list[Group], examples: dict[int, Example]) -> list[DuplicateGroup]:
    return [
        DuplicateGroup(
            kept=examples[group.root],
            num_copies=group.num_copies,
            copies=[examples[ordinal] for ordinal, _ in group.copies],
        )
        for group in groups
    ]


def _found_in(compared: Artifact, eps: float, buckets: list[list[int]]) -> GroupSummary:
    return reduce(GroupSummary.__add__, (groups_of(read_compared(compared, parts), eps) for parts in buckets))


def groups_of(bucket: Compared, eps: float) -> GroupSummary:
    """Find the groups of duplicates at `eps` in a bucket of whole clusters."""
    is_copy = bucket.similarity > np.float32(1 - eps)
    copies = np.flatnonzero(is_copy)
    roots = _roots(bucket, copies)[copies]
    sizes = np.bincount(roots)
    filled = np.flatnonzero(sizes)
    order = filled[np.lexsort((bucket.ordinals[filled], -sizes[filled]))]
    largest = [_group(bucket, root, copies[roots == root]) for root in order[:GROUPS_SHOWN]]
    return GroupSummary(len(filled), int((sizes == 1).sum()), largest, _count(bucket.similarity, eps))


def _roots(bucket: Compared, copies: NDArray[np.int64]) -> NDArray[np.int64]:
    # positions in the bucket, not ordinals
    by_ordinal = np.argsort(bucket.ordinals)
    parents = np.arange(len(bucket.ordinals))
    parents[copies] = by_ordinal[np.searchsorted(bucket.ordinals[by_ordinal], bucket.earlier[copies])]
    while not np.array_equal(parents, further := parents[parents]):
        parents = further
    return parents


def _group(bucket: Compared, root: int, copies: NDArray[np.int64]) -> Group:
    drawn = copies[np.argsort(random_keys(SEED, bucket.ordinals[copies]))[:COPIES_SHOWN]]
    drawn = drawn[np.lexsort((bucket.ordinals[drawn], -bucket.similarity[drawn]))]
    pairs = zip(bucket.ordinals[drawn].tolist(), bucket.similarity[drawn].tolist(), strict=True)
    return Group(int(bucket.ordinals[root]), len(copies), list(pairs))


def _count(similarity: NDArray[np.float32], eps: float) -> NDArray[np.int64]:
    # bin BINS_EACH_SIDE is the first with duplicates; bins include their upper edge, because the rule is `> 1 - eps`
    above = similarity[np.isfinite(similarity)].astype(np.float64) - np.float32(1 - eps)
    bins = np.ceil(above * BINS_PER_UNIT).astype(np.int64) - 1 + BINS_EACH_SIDE
    return np.bincount(bins, minlength=2 * BINS_EACH_SIDE)


def _histogram(counts: NDArray[np.int64], eps: float) -> SimilarityHistogram:
    filled = np.flatnonzero(counts)
    if not filled.size:
        return SimilarityHistogram(edges=[], counts=[])
    bins = np.arange(filled[0], filled[-1] + 1)
    edges = np.append(bins, bins[-1] + 1) - BINS_EACH_SIDE
    return SimilarityHistogram(
        edges=[round(1 - eps + edge / BINS_PER_UNIT, 9) for edge in edges.tolist()], counts=counts[bins].tolist()
    )
