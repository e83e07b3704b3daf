"""Artifacts of made-up pools, for stages that read columns and no images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa

from orchestrator.config import ClusterConfig, StepConfig, TableSource
from orchestrator.data.catalog import Catalog, PartRows, part_rows, to_parquet
from orchestrator.data.keep_list import pack
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import embedding_totals, part_result, unit_vectors
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, Work
from orchestrator.engine.ray_cluster import connect
from orchestrator.source import CaptionTable

DISPLAY = Display()


def synthetic_step(store_uri: str, settings: StepConfig, rows_per_part: list[int], dim: int) -> Step:
    """Return a step that all pairs of a pool without captions and images reach."""
    connect(ClusterConfig())
    made = Artifact.of(store_uri, "catalog", version=0, rows=rows_per_part)
    totals = {"rows": sum(rows_per_part)}
    made.publish(totals=totals, parts=[{"rows": rows} for rows in rows_per_part], seconds=0)
    catalog = Catalog(made)
    pool = Artifact.of(store_uri, "keep", version=0, catalog=made)
    PartsJob(pool, part_rows(catalog), lambda: lambda part: pack(np.ones(part.num_rows, bool)), name="pool").build(
        DISPLAY
    )
    embedding = Artifact.of(store_uri, "embedding", version=0, catalog=made, dim=dim, towers=["image"])
    return Step(
        name=settings.method,
        settings=settings,
        store_uri=store_uri,
        source=CaptionTable(TableSource(), ()),
        catalog=catalog,
        incoming=pool,
        num_actors=None,
        embedding=embedding,
    )


def write_embedding(step: Step, dim: int, num_blobs: int) -> None:
    """Write a vector for every pair, around random directions."""
    assert step.embedding is not None
    totals = partial(embedding_totals, dims={"image": dim})
    work = partial(_vectors, dim, num_blobs)
    PartsJob(step.embedding, part_rows(step.catalog), work, name="vectors", totals=totals).build(DISPLAY)


def _vectors(dim: int, num_blobs: int) -> Work:
    centres = np.random.default_rng(0).standard_normal((num_blobs, dim)).astype(np.float32)

    def work(part: PartRows) -> PartResult:
        rng = np.random.default_rng(part.index)
        vectors = centres[rng.integers(0, num_blobs, part.num_rows)]
        noise = rng.standard_normal(vectors.shape, np.float32)
        return part_result({"image": unit_vectors(vectors + noise)}, problems={}, examples=[])

    return work


def write_assigned(assigned: Artifact, step: Step, k: int) -> None:
    """Write a cluster and a distance for every pair. Clusters differ much in size and spread."""
    PartsJob(assigned, part_rows(step.catalog), partial(_assigned, k), name="clusters").build(DISPLAY)


def _assigned(k: int) -> Work:
    shares = np.random.default_rng(1).pareto(1.5, k) + 0.05

    def work(part: PartRows) -> PartResult:
        rng = np.random.default_rng(part.index)
        clusters = rng.choice(k, part.num_rows, p=shares / shares.sum()).astype(np.int32)
        distances = (rng.beta(2, 3, part.num_rows) * (0.3 + 0.7 * (clusters / k))).astype(np.float32)
        table = pa.table({"cluster": clusters, "distance": distances})
        return PartResult({"parquet": to_parquet(table)}, {"rows": part.num_rows, "reached": part.num_rows})

    return work


def sizes_of(num_pairs: int, pairs_per_part: int) -> list[int]:
    """Return the number of rows of each part."""
    return list(_sizes(num_pairs, pairs_per_part))


def _sizes(num_pairs: int, pairs_per_part: int) -> Iterator[int]:
    for start in range(0, num_pairs, pairs_per_part):
        yield min(pairs_per_part, num_pairs - start)
