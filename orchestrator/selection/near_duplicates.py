"""Each pair's highest cosine to an earlier pair of its cluster, in three stages: from the pool's order to the order of
the clusters and back.

1. regroup: each group of parts writes its vectors by bucket. A bucket is a run of whole clusters with about 260,000
   pairs, or a 2,048th of the pool.
2. compare: each bucket is compared cluster by cluster, and the result is written by group of parts.
3. collect: each group writes its result by part.

So every vector is written and read once. A bucket with a huge cluster is compared by several tasks; each of them reads
the whole bucket."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.clustering import Clusters
from orchestrator.clustering.assign import read_assigned
from orchestrator.clustering.stats import ClusterStats
from orchestrator.config import Order, SemDeDupStep
from orchestrator.data.catalog import Catalog, PartRows
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, Summary, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.shuffle import column_to_vectors, gather, pack, split, vectors_to_column
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.pruning.clusters import unit
from orchestrator.pruning.order import order_keys
from orchestrator.pruning.semdedup import max_earlier_similarity
from orchestrator.selection.buckets import (
    MAX_BUCKETS,
    PAIRS_PER_BUCKET,
    Share,
    bucket_of_cluster,
    even_shares,
    num_shares,
)
from orchestrator.selection.random_stream import seed_of, stream_input
from orchestrator.selection.similarity import MAX_GROUPS, PAIRS_PER_GROUP, pool_groups

logger = logging.getLogger(__name__)
VERSION = 4
# numbers in a cluster's vectors: up to 512 MB as float32 are converted at once, a quarter faster than tile by tile
MAX_WIDENED = 2**27


def compare_stages(step: Step, settings: SemDeDupStep, clusters: Clusters) -> list[Stage]:
    """The three stages; `Similarity` reads the artifact of the last one."""
    regrouped = _regroup_stage(step, clusters)
    compared = _compare_stage(step, settings, clusters, regrouped.artifact)
    return [regrouped, compared, _collect_stage(step, compared.artifact)]


def _uris(artifact: Artifact) -> list[str]:
    return [part_path(artifact, index, "exchange") for index in range(len(artifact.parts))]


def _regroup_stage(step: Step, clusters: Clusters) -> Stage:
    embedding = step.embedding
    assert embedding is not None
    artifact = Artifact.of(
        step.store_uri, "by_cluster", version=VERSION, catalog=step.catalog.artifact, assigned=clusters.assigned
    )
    name = f"regroup, {step.name}"

    return Stage(
        name=name,
        role=Role.REGROUP,
        step=step.name,
        does="bring the vectors of each cluster together",
        artifact=artifact,
        build=BuildRegrouped(artifact, step, clusters.assigned, clusters.stats, name),
        scaling=CostScaling(
            holds=lambda pairs: min(pairs, max(PAIRS_PER_GROUP, pairs // MAX_GROUPS)),
            num_tasks=by_groups(MAX_GROUPS, PAIRS_PER_GROUP),
        ),
    )


@dataclass(frozen=True)
class BuildRegrouped:
    """Builds the vectors by bucket."""

    artifact: Artifact
    step: Step
    assigned: Artifact
    stats: Artifact
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Reads the sizes of the clusters once, here: every task makes its own work."""
        assert self.step.embedding is not None
        buckets = bucket_of_cluster(ClusterStats.read(self.stats).sizes)
        logger.info("%s: %d clusters in %d buckets", self.name, len(buckets), buckets[-1] + 1)
        embedding, keep = Embedding(self.step.embedding), KeepList(self.step.incoming)
        return PartsJob(
            self.artifact,
            pool_groups(self.step.catalog),
            partial(GroupByBucket, embedding, keep, self.assigned, buckets),
            name=self.name,
            count="pairs",
        ).build(display)


@dataclass(frozen=True)
class GroupByBucket:
    """The work of regrouping on a group of parts; `buckets` int64 [k] is the bucket of each cluster."""

    embedding: Embedding
    keep: KeepList
    assigned: Artifact
    buckets: NDArray[np.int64]

    def __call__(self, group: Sequence[PartRows]) -> PartResult:
        """The group's pairs with an embedding, one table for each bucket."""
        table = pa.concat_tables(self._embedded_pairs(part) for part in group)
        tables = split(table, self.buckets[table["cluster"].to_numpy()], int(self.buckets[-1]) + 1)
        return PartResult({"exchange": pack(tables)}, {"pairs": table.num_rows})

    def _embedded_pairs(self, part: PartRows) -> pa.Table:
        rows = np.flatnonzero(self.keep.mask(part.index, part.num_rows))
        clusters, distances = read_assigned(self.assigned, part.index)
        embedded = clusters >= 0
        return pa.table(
            {
                "ordinal": part.first_ordinal + rows[embedded],
                "cluster": clusters[embedded],
                "distance": distances[embedded],
                "vector": vectors_to_column(self.embedding.image(part.index)[rows[embedded]]),
            }
        )


def _compare_stage(step: Step, settings: SemDeDupStep, clusters: Clusters, regrouped: Artifact) -> Stage:
    artifact = Artifact.of(
        step.store_uri,
        "compared",
        version=VERSION,
        regrouped=regrouped,
        order=settings.order,
        seed=settings.seed,
        **stream_input(step),
    )
    name = f"compare, {step.name}"

    per_cluster = 1 / settings.clustering.k
    return Stage(
        name=name,
        role=Role.COMPARE,
        step=step.name,
        does="compare each pair with the earlier ones of its cluster",
        artifact=artifact,
        build=BuildCompared(artifact, step, settings, clusters.stats, regrouped, name),
        scaling=CostScaling(
            work=lambda pairs: pairs * pairs * per_cluster,
            holds=lambda pairs: min(pairs, max(PAIRS_PER_BUCKET, pairs // MAX_BUCKETS) + int(pairs * per_cluster)),
            num_tasks=lambda size: num_shares(size.pairs, settings.clustering.k),
            by_cluster_size=True,
        ),
    )


def _pairs(summaries: Sequence[Summary]) -> dict[str, int]:
    return {"pairs": sum(summary["pairs"] for summary in summaries)}


@dataclass(frozen=True)
class BuildCompared:
    """Builds the result of the comparison, by bucket."""

    artifact: Artifact
    step: Step
    settings: SemDeDupStep
    stats: Artifact
    regrouped: Artifact
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Divides the buckets into shares, and compares them."""
        shares = even_shares(ClusterStats.read(self.stats).sizes)
        logger.info("%s: %d tasks compare", self.name, len(shares))
        work = partial(CompareShare.of, self.step.catalog, self.settings.order, seed_of(self.step), self.regrouped)
        return PartsJob(self.artifact, shares, work, name=self.name, count="pairs", totals=_pairs).build(display)


@dataclass(frozen=True)
class CompareShare:
    """The work of comparing on one share; `firsts` are the first ordinals of the groups of parts."""

    uris: list[str]
    firsts: list[int]
    order: Order
    seed: int

    @classmethod
    def of(cls, catalog: Catalog, order: Order, seed: int, regrouped: Artifact) -> CompareShare:
        """The comparison of what `regrouped` holds."""
        firsts = [group[0].first_ordinal for group in pool_groups(catalog)]
        return cls(_uris(regrouped), firsts, order, seed)

    def __call__(self, share: Share) -> PartResult:
        """What the share found, one table for each group of parts."""
        tables = list(gather(self.uris, share.bucket))
        if not tables:
            empty = {"exchange": pack([pa.table({})] * len(self.firsts))}
            return PartResult(empty, {"bucket": share.bucket, "pairs": 0})
        table = pa.concat_tables(tables)
        ordinals, clusters = table["ordinal"].to_numpy(), table["cluster"].to_numpy()
        keys = order_keys(table["distance"].to_numpy(), ordinals, self.order, self.seed)
        # by cluster, then highest key first, then by position
        order = np.lexsort((ordinals, ~keys, clusters))
        start, stop = share.rows(clusters[order])
        similarity, earlier = _by_cluster(column_to_vectors(table["vector"]), clusters, order, start, stop)
        later = ordinals[order[start:stop]]
        before = np.where(earlier < 0, -1, ordinals[order[earlier]])
        found = pa.table({"ordinal": later, "similarity": similarity, "earlier": before})
        group = np.searchsorted(self.firsts, later, side="right") - 1
        files = {"exchange": pack(split(found, group, len(self.firsts)))}
        return PartResult(files, {"bucket": share.bucket, "pairs": len(later)})


def _by_cluster(
    vectors: NDArray[np.float16], clusters: NDArray[np.int32], order: NDArray[np.int64], start: int, stop: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # for the pairs from `start` to `stop` of `order`: similarity, and the place in `order` of the earlier pair
    similarity, earlier = np.empty(stop - start, np.float32), np.empty(stop - start, np.int64)
    ends = (np.flatnonzero(np.diff(clusters[order], append=-1)) + 1).tolist()
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        begin, end = max(first, start), min(end, stop)
        if begin >= end:
            continue
        cluster = vectors[order[first:end]]
        widened = unit(cluster) if cluster.size <= MAX_WIDENED else cluster
        found = max_earlier_similarity(widened, first=begin - first)
        similarity[begin - start : end - start] = found[0]
        earlier[begin - start : end - start] = np.where(found[1] < 0, -1, found[1] + first)
    return similarity, earlier


def _collect_stage(step: Step, compared: Artifact) -> Stage:
    artifact = Artifact.of(step.store_uri, "similarity", version=VERSION, compared=compared)
    name = f"collect, {step.name}"

    return Stage(
        name=name,
        role=Role.COLLECT_SIMILARITY,
        step=step.name,
        does="bring the similarities back to the pool's order",
        artifact=artifact,
        build=BuildCollected(artifact, step, compared, name),
        scaling=CostScaling(num_tasks=by_groups(MAX_GROUPS, PAIRS_PER_GROUP)),
    )


@dataclass(frozen=True)
class BuildCollected:
    """Builds the similarities in the pool's order."""

    artifact: Artifact
    step: Step
    compared: Artifact
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Collects group by group."""
        items, work = list(enumerate(pool_groups(self.step.catalog))), partial(CollectGroup.of, self.compared)
        return PartsJob(self.artifact, items, work, name=self.name, count="pairs").build(display)


@dataclass(frozen=True)
class CollectGroup:
    """The work of collecting on a group of parts."""

    uris: list[str]

    @classmethod
    def of(cls, compared: Artifact) -> CollectGroup:
        """Collects what `compared` holds."""
        return cls(_uris(compared))

    def __call__(self, item: tuple[int, Sequence[PartRows]]) -> PartResult:
        """What was found for the group's pairs, one table for each part, in row order."""
        index, group = item
        tables = list(gather(self.uris, index))
        if not tables:
            return PartResult({"exchange": pack([pa.table({})] * len(group))}, {"pairs": 0})
        table = pa.concat_tables(tables).sort_by("ordinal")
        firsts = [part.first_ordinal for part in group]
        part = np.searchsorted(firsts, table["ordinal"].to_numpy(), side="right") - 1
        return PartResult({"exchange": pack(split(table, part, len(group)))}, {"pairs": table.num_rows})
