"""Every pair's largest cosine to an earlier pair of its cluster: from the pool's order to the clusters' and back.

Groups of parts write their vectors by bucket, a run of clusters with some 260,000 pairs or a 2,048th of all; a bucket
compares cluster by cluster and writes what it found by group of parts; a group writes it by part. So the vectors move
once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog, PartRows, part_groups
from orchestrator.clustering import Clusters
from orchestrator.clustering.assign import read_assigned
from orchestrator.clustering.stats import ClusterStats
from orchestrator.config import SemDeDupStep
from orchestrator.embedding.vectors import Embedding
from orchestrator.exchange import column_to_vectors, gather, pack, read_slice, read_slices, split, vectors_to_column
from orchestrator.keeplist import KeepList
from orchestrator.parts import PartResult, Work, build_parts, part_path
from orchestrator.progress import Display
from orchestrator.pruning.clusters import unit
from orchestrator.pruning.order import order_keys
from orchestrator.pruning.semdedup import max_earlier_similarity
from orchestrator.stage import Stage, by_groups
from orchestrator.step import Step

VERSION = 2
PAIRS_PER_GROUP = 2**17
PAIRS_PER_BUCKET = 2**18
# slices are read one by one, and there are groups x buckets of them
MAX_GROUPS, MAX_BUCKETS = 2048, 2048
# values of a cluster: up to 512 MB of float32 are made at once, which compares a quarter faster than tile by tile
MOST_WIDENED = 2**27


def compare_stages(step: Step, settings: SemDeDupStep, clusters: Clusters) -> list[Stage]:
    """The stages; the last one's artifact holds what `Similarity` reads."""
    regrouped = _regroup_stage(step, clusters)
    compared = _compare_stage(step, settings, clusters, regrouped.artifact)
    return [regrouped, compared, _return_stage(step, compared.artifact)]


def _groups(catalog: Catalog) -> list[list[PartRows]]:
    return part_groups(catalog, max_groups=MAX_GROUPS, pairs_per_group=PAIRS_PER_GROUP)


def _bucket_of_cluster(stats: Artifact) -> NDArray[np.int64]:
    sizes = ClusterStats.read(stats).sizes
    per_bucket = max(PAIRS_PER_BUCKET, -(-int(sizes.sum()) // MAX_BUCKETS))
    return np.unique((np.cumsum(sizes) - sizes) // per_bucket, return_inverse=True)[1]


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
        buckets = _bucket_of_cluster(clusters.stats)
        work = partial(_regroup_work, Embedding(embedding), KeepList(step.incoming), clusters.assigned, buckets)
        return build_parts(artifact, _groups(step.catalog), work, display=display, name=name, count="pairs")

    return Stage(
        name=name,
        does="bring the vectors of each cluster together",
        artifact=artifact,
        build=build,
        holds=lambda pairs: min(pairs, max(PAIRS_PER_GROUP, pairs // MAX_GROUPS)),
        num_tasks=by_groups(MAX_GROUPS, PAIRS_PER_GROUP),
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
        num_buckets = int(_bucket_of_cluster(clusters.stats)[-1]) + 1
        work = partial(_compare_work, step.catalog, settings, regrouped)
        return build_parts(artifact, range(num_buckets), work, display=display, name=name, count="pairs")

    per_cluster = 1 / settings.clustering.k
    return Stage(
        name=name,
        does="compare each pair with the earlier ones of its cluster",
        artifact=artifact,
        build=build,
        work=lambda pairs: pairs * pairs * per_cluster,
        holds=lambda pairs: min(pairs, max(PAIRS_PER_BUCKET, pairs // MAX_BUCKETS) + int(pairs * per_cluster)),
        num_tasks=lambda size: max(1, min(settings.clustering.k, MAX_BUCKETS, -(-size.pairs // PAIRS_PER_BUCKET))),
        by_cluster_size=True,
    )


def _compare_work(catalog: Catalog, settings: SemDeDupStep, regrouped: Artifact) -> Work:
    uris, firsts = _uris(regrouped), [group[0].first_ordinal for group in _groups(catalog)]

    def work(bucket: int) -> PartResult:
        tables = list(gather(uris, bucket))
        if not tables:
            return PartResult({"exchange": pack([pa.table({})] * len(firsts))}, {"pairs": 0})
        table = pa.concat_tables(tables)
        ordinals, clusters = table["ordinal"].to_numpy(), table["cluster"].to_numpy()
        keys = order_keys(table["distance"].to_numpy(), ordinals, settings.order, settings.seed)
        # by cluster, then highest key first, then by position
        order = np.lexsort((ordinals, ~keys, clusters))
        similarity, earlier = _by_cluster(column_to_vectors(table["vector"]), clusters, order)
        found = pa.table(
            {
                "ordinal": ordinals[order],
                "similarity": similarity,
                "earlier": np.where(earlier < 0, -1, ordinals[order[earlier]]),
            }
        )
        group = np.searchsorted(firsts, ordinals[order], side="right") - 1
        return PartResult({"exchange": pack(split(found, group, len(firsts)))}, {"pairs": table.num_rows})

    return work


def _by_cluster(
    vectors: NDArray[np.float16], clusters: NDArray[np.int32], order: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # both in the given order; `earlier` is a place in it
    similarity, earlier = np.empty(len(order), np.float32), np.empty(len(order), np.int64)
    ends = np.flatnonzero(np.diff(clusters[order], append=-1)) + 1
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        cluster = vectors[order[start:end]]
        found = max_earlier_similarity(unit(cluster) if cluster.size <= MOST_WIDENED else cluster)
        similarity[start:end] = found[0]
        earlier[start:end] = np.where(found[1] < 0, -1, found[1] + start)
    return similarity, earlier


class Compared(NamedTuple):
    """Of the pairs of a bucket, in no order: global ordinals int64 [n], the largest cosine to an earlier pair of the
    cluster float32 [n], and that pair's ordinal int64 [n] (-1: it is the first). No cluster lies in two buckets."""

    ordinals: NDArray[np.int64]
    similarity: NDArray[np.float32]
    earlier: NDArray[np.int64]


def read_compared(compared: Artifact, bucket: int) -> Compared:
    """What was found in a bucket; there is one for each part of the artifact."""
    tables = list(read_slices(part_path(compared, bucket, "exchange")))
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
        does="bring what was found back to the pool's order",
        artifact=artifact,
        build=build,
        num_tasks=by_groups(MAX_GROUPS, PAIRS_PER_GROUP),
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
