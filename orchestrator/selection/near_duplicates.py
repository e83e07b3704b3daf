"""Every pair's largest cosine to an earlier pair of its cluster: from the pool's order to the clusters' and back.

Groups of parts write their vectors by bucket, a run of clusters with some 260,000 pairs or a 2,048th of all; a bucket
compares cluster by cluster and writes what it found by group of parts; a group writes it by part. So the vectors move
once. A bucket that holds a huge cluster is compared by several tasks, each of which reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.clustering import Clusters
from orchestrator.clustering.assign import read_assigned
from orchestrator.clustering.stats import ClusterStats
from orchestrator.config import SemDeDupStep
from orchestrator.data.catalog import Catalog, PartRows, part_groups
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Summary, Work, build_parts, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.shuffle import (
    column_to_vectors,
    gather,
    pack,
    read_slice,
    read_slices,
    split,
    vectors_to_column,
)
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.pruning.clusters import unit
from orchestrator.pruning.order import order_keys
from orchestrator.pruning.semdedup import TILE, max_earlier_similarity

VERSION = 3
PAIRS_PER_GROUP = 2**17
PAIRS_PER_BUCKET = 2**18
# slices are read one by one, and there are groups x buckets of them
MAX_GROUPS, MAX_BUCKETS = 2048, 2048
# values of a cluster: up to 512 MB of float32 are made at once, which compares a quarter faster than tile by tile
MOST_WIDENED = 2**27
# of one task: a quarter of an hour of a core
COMPARISONS_PER_TASK = 2**36


def compare_stages(step: Step, settings: SemDeDupStep, clusters: Clusters) -> list[Stage]:
    """The stages; the last one's artifact holds what `Similarity` reads."""
    regrouped = _regroup_stage(step, clusters)
    compared = _compare_stage(step, settings, clusters, regrouped.artifact)
    return [regrouped, compared, _return_stage(step, compared.artifact)]


def _groups(catalog: Catalog) -> list[list[PartRows]]:
    return part_groups(catalog, max_groups=MAX_GROUPS, pairs_per_group=PAIRS_PER_GROUP)


@dataclass(frozen=True)
class Share:
    """What one task compares: one of `num_shares` even shares of a bucket's comparisons."""

    bucket: int
    share: int = 0
    num_shares: int = 1

    def rows(self, clusters: NDArray[np.int32]) -> tuple[int, int]:
        """Where the share begins and ends among a bucket's pairs, sorted by `clusters`: at a tile of a cluster, so that
        each pair is compared as it would be by one task for all."""
        firsts = np.searchsorted(clusters, clusters)
        so_far = np.cumsum(np.arange(len(clusters)) - firsts)

        def cut(share: int) -> int:
            if share == self.num_shares:
                return len(clusters)
            place = int(np.searchsorted(so_far, int(so_far[-1]) * share // self.num_shares))
            return place - int(place - firsts[place]) % TILE

        return cut(self.share), cut(self.share + 1)


def _bucket_of_cluster(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    per_bucket = max(PAIRS_PER_BUCKET, -(-int(sizes.sum()) // MAX_BUCKETS))
    return np.unique((np.cumsum(sizes) - sizes) // per_bucket, return_inverse=True)[1]


def _shares(sizes: NDArray[np.int64]) -> list[Share]:
    comparisons = np.bincount(_bucket_of_cluster(sizes), sizes.astype(np.float64) ** 2 / 2)
    counts = np.maximum(1, np.ceil(comparisons / COMPARISONS_PER_TASK)).astype(np.int64)
    return [Share(bucket, share, count) for bucket, count in enumerate(counts.tolist()) for share in range(count)]


def _uris(artifact: Artifact) -> list[str]:
    return [part_path(artifact, index, "exchange") for index in range(len(artifact.parts))]


def _regroup_stage(step: Step, clusters: Clusters) -> Stage:
    embedding = step.embedding
    assert embedding is not None
    artifact = Artifact.of(
        step.store_uri, "by_cluster", version=VERSION, catalog=step.catalog.artifact, assigned=clusters.assigned
    )
    name = f"regroup, {step.name}"

    def build(display: Display) -> Artifact:
        # read here, once: the work is made anew for every group
        buckets = _bucket_of_cluster(ClusterStats.read(clusters.stats).sizes)
        work = partial(_regroup_work, Embedding(embedding), KeepList(step.incoming), clusters.assigned, buckets)
        return build_parts(artifact, _groups(step.catalog), work, display=display, name=name, count="pairs")

    return Stage(
        name=name,
        role=Role.REGROUP,
        step=step.name,
        does="bring the vectors of each cluster together",
        artifact=artifact,
        build=build,
        scaling=CostScaling(
            holds=lambda pairs: min(pairs, max(PAIRS_PER_GROUP, pairs // MAX_GROUPS)),
            num_tasks=by_groups(MAX_GROUPS, PAIRS_PER_GROUP),
        ),
    )


def _regroup_work(embedding: Embedding, keep: KeepList, assigned: Artifact, buckets: NDArray[np.int64]) -> Work:
    def work(group: Sequence[PartRows]) -> PartResult:
        table = pa.concat_tables(_embedded_pairs(embedding, keep, assigned, part) for part in group)
        tables = split(table, buckets[table["cluster"].to_numpy()], int(buckets[-1]) + 1)
        return PartResult({"exchange": pack(tables)}, {"pairs": table.num_rows})

    return work


def _embedded_pairs(embedding: Embedding, keep: KeepList, assigned: Artifact, part: PartRows) -> pa.Table:
    rows = np.flatnonzero(keep.mask(part.index, part.num_rows))
    clusters, distances = read_assigned(assigned, part.index)
    embedded = clusters >= 0
    return pa.table(
        {
            "ordinal": part.first_ordinal + rows[embedded],
            "cluster": clusters[embedded],
            "distance": distances[embedded],
            "vector": vectors_to_column(embedding.image(part.index)[rows[embedded]]),
        }
    )


def _compare_stage(step: Step, settings: SemDeDupStep, clusters: Clusters, regrouped: Artifact) -> Stage:
    artifact = Artifact.of(
        step.store_uri, "compared", version=VERSION, regrouped=regrouped, order=settings.order, seed=settings.seed
    )
    name = f"compare, {step.name}"

    def build(display: Display) -> Artifact:
        shares = _shares(ClusterStats.read(clusters.stats).sizes)
        work = partial(_compare_work, step.catalog, settings, regrouped)
        return build_parts(artifact, shares, work, display=display, name=name, count="pairs", totals=_pairs)

    per_cluster = 1 / settings.clustering.k
    return Stage(
        name=name,
        role=Role.COMPARE,
        step=step.name,
        does="compare each pair with the earlier ones of its cluster",
        artifact=artifact,
        build=build,
        scaling=CostScaling(
            work=lambda pairs: pairs * pairs * per_cluster,
            holds=lambda pairs: min(pairs, max(PAIRS_PER_BUCKET, pairs // MAX_BUCKETS) + int(pairs * per_cluster)),
            num_tasks=lambda size: _num_shares(size.pairs, settings.clustering.k),
            by_cluster_size=True,
        ),
    )


def _num_shares(pairs: int, k: int) -> int:
    # of even clusters
    buckets = min(k, MAX_BUCKETS, -(-pairs // PAIRS_PER_BUCKET))
    return max(1, buckets, pairs * pairs // (2 * k * COMPARISONS_PER_TASK))


def _pairs(summaries: Sequence[Summary]) -> dict[str, int]:
    return {"pairs": sum(summary["pairs"] for summary in summaries)}


def _compare_work(catalog: Catalog, settings: SemDeDupStep, regrouped: Artifact) -> Work:
    uris, firsts = _uris(regrouped), [group[0].first_ordinal for group in _groups(catalog)]

    def work(share: Share) -> PartResult:
        tables = list(gather(uris, share.bucket))
        if not tables:
            empty = {"exchange": pack([pa.table({})] * len(firsts))}
            return PartResult(empty, {"bucket": share.bucket, "pairs": 0})
        table = pa.concat_tables(tables)
        ordinals, clusters = table["ordinal"].to_numpy(), table["cluster"].to_numpy()
        keys = order_keys(table["distance"].to_numpy(), ordinals, settings.order, settings.seed)
        # by cluster, then highest key first, then by position
        order = np.lexsort((ordinals, ~keys, clusters))
        start, stop = share.rows(clusters[order])
        similarity, earlier = _by_cluster(column_to_vectors(table["vector"]), clusters, order, start, stop)
        told = ordinals[order[start:stop]]
        before = np.where(earlier < 0, -1, ordinals[order[earlier]])
        found = pa.table({"ordinal": told, "similarity": similarity, "earlier": before})
        group = np.searchsorted(firsts, told, side="right") - 1
        files = {"exchange": pack(split(found, group, len(firsts)))}
        return PartResult(files, {"bucket": share.bucket, "pairs": len(told)})

    return work


def _by_cluster(
    vectors: NDArray[np.float16], clusters: NDArray[np.int32], order: NDArray[np.int64], start: int, stop: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # of the pairs from `start` to `stop` in the given order; `earlier` is a place in it
    similarity, earlier = np.empty(stop - start, np.float32), np.empty(stop - start, np.int64)
    ends = (np.flatnonzero(np.diff(clusters[order], append=-1)) + 1).tolist()
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        begin, end = max(first, start), min(end, stop)
        if begin >= end:
            continue
        cluster = vectors[order[first:end]]
        widened = unit(cluster) if cluster.size <= MOST_WIDENED else cluster
        found = max_earlier_similarity(widened, first=begin - first)
        similarity[begin - start : end - start] = found[0]
        earlier[begin - start : end - start] = np.where(found[1] < 0, -1, found[1] + first)
    return similarity, earlier


class Compared(NamedTuple):
    """Of the pairs of a bucket, in no order: global ordinals int64 [n], the largest cosine to an earlier pair of the
    cluster float32 [n], and that pair's ordinal int64 [n] (-1: it is the first). No cluster lies in two buckets."""

    ordinals: NDArray[np.int64]
    similarity: NDArray[np.float32]
    earlier: NDArray[np.int64]


def bucket_parts(compared: Artifact) -> list[list[int]]:
    """The parts of the artifact that each bucket's comparison is in."""
    parts: dict[int, list[int]] = {}
    for part in compared.parts:
        parts.setdefault(part["bucket"], []).append(part["index"])
    return list(parts.values())


def read_compared(compared: Artifact, parts: Sequence[int]) -> Compared:
    """What was found in a bucket, by its parts."""
    tables = [table for part in parts for table in read_slices(part_path(compared, part, "exchange"))]
    if not tables:
        return Compared(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    table = pa.concat_tables(tables)
    return Compared(*(table[name].to_numpy() for name in ("ordinal", "similarity", "earlier")))


def _return_stage(step: Step, compared: Artifact) -> Stage:
    artifact = Artifact.of(step.store_uri, "similarity", version=VERSION, compared=compared)
    name = f"collect, {step.name}"

    def build(display: Display) -> Artifact:
        items = list(enumerate(_groups(step.catalog)))
        return build_parts(artifact, items, partial(_return_work, compared), display=display, name=name, count="pairs")

    return Stage(
        name=name,
        role=Role.COLLECT_SIMILARITY,
        step=step.name,
        does="bring what was found back to the pool's order",
        artifact=artifact,
        build=build,
        scaling=CostScaling(num_tasks=by_groups(MAX_GROUPS, PAIRS_PER_GROUP)),
    )


def _return_work(compared: Artifact) -> Work:
    uris = _uris(compared)

    def work(item: tuple[int, Sequence[PartRows]]) -> PartResult:
        index, group = item
        tables = list(gather(uris, index))
        if not tables:
            return PartResult({"exchange": pack([pa.table({})] * len(group))}, {"pairs": 0})
        table = pa.concat_tables(tables).sort_by("ordinal")
        firsts = [part.first_ordinal for part in group]
        part = np.searchsorted(firsts, table["ordinal"].to_numpy(), side="right") - 1
        return PartResult({"exchange": pack(split(table, part, len(group)))}, {"pairs": table.num_rows})

    return work


@dataclass(frozen=True)
class Similarity:
    """What was found, by part."""

    artifact: Artifact
    catalog: Catalog

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        groups = _groups(self.catalog)
        return {part.index: (g, position) for g, group in enumerate(groups) for position, part in enumerate(group)}

    def of_part(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Of the part's pairs that reached the step and have an embedding, in row order: the largest cosine to an
        earlier pair of the cluster, float32 [n], and that pair's global ordinal, int64 [n] (-1: it is the first)."""
        group, position = self._places[index]
        table = read_slice(part_path(self.artifact, group, "exchange"), position)
        if table is None:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        return table["similarity"].to_numpy(), table["earlier"].to_numpy()
