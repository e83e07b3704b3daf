"""The sample k-means is trained on: every pair that reaches the step has the same chance, by its own random key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import Clustering
from orchestrator.data.catalog import PartRows, part_groups
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding, is_present
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Summary, Work, build_parts, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.errors import UserError
from orchestrator.pruning.random import random_scores
from orchestrator.storage import files
from orchestrator.storage.npy import from_npy, to_npy

VERSION = 1
MAX_GROUPS = 512
# where fewer are drawn, vectors of a kilobyte lie further apart than one request bridges (`source.ranges`)
SPARSE = 1 / 64
# not the keys by which `random` draws: a sample would lie inside what that step keeps
STREAM = int.from_bytes(b"sample", "big")


def sample_stage(step: Step, settings: Clustering) -> Stage:
    """Gathers the vectors of about k * points_per_centroid pairs, float16, one file for a group of parts."""
    embedding = step.embedding
    assert embedding is not None
    num_wanted = settings.num_wanted
    artifact = Artifact.of(
        step.store_uri,
        "sample",
        version=VERSION,
        embedding=embedding,
        keep=step.incoming,
        num_wanted=num_wanted,
        seed=settings.seed,
    )

    def build(display: Display) -> Artifact:
        keep = KeepList(step.incoming)
        work = partial(_work, Embedding(embedding), keep, num_wanted / max(1, keep.num_pairs), settings.seed)
        return build_parts(
            artifact,
            part_groups(step.catalog, max_groups=MAX_GROUPS),
            work,
            display=display,
            name=f"sample, {step.name}",
            count="sampled",
            check=partial(_check, step.name, settings.k),
        )

    return Stage(
        name=f"sample, {step.name}",
        role=Role.SAMPLE,
        step=step.name,
        does=f"draw {num_wanted:,} vectors, or all, to train {settings.k:,} centroids on",
        artifact=artifact,
        build=build,
        scaling=CostScaling(stores=lambda pairs: min(pairs, num_wanted), num_tasks=by_groups(MAX_GROUPS)),
    )


def _work(embedding: Embedding, keep: KeepList, share: float, seed: int) -> Work:
    threshold = np.uint64(min(share, 1.0) * (2**64 - 1025))

    def work(group: Sequence[PartRows]) -> PartResult:
        chunks = []
        for part in group:
            drawn = random_scores(seed ^ STREAM, part.first_ordinal, part.num_rows) <= threshold
            rows = np.flatnonzero(keep.mask(part.index, part.num_rows) & (drawn | (share >= 1)))
            sparse = len(rows) < SPARSE * part.num_rows
            vectors = embedding.image_rows(part.index, rows) if sparse else embedding.image(part.index)[rows]
            chunks.append(vectors[is_present(vectors)])
        sample = np.concatenate(chunks)
        return PartResult({"npy": to_npy(sample)}, {"sampled": len(sample)})

    return work


def _check(name: str, k: int, summaries: list[Summary]) -> None:
    sampled = sum(summary["sampled"] for summary in summaries)
    if sampled < k:
        raise UserError(
            f"selection.{name}.clustering.k={k:,}, but only {sampled:,} pairs with an embedding reach the step; "
            f"set k to at most that"
        )


def read_sample(sample: Artifact, groups: Sequence[int]) -> Iterator[NDArray[np.float16]]:
    """The vectors of each of the groups, float16 [n, d]."""
    for group in groups:
        yield from_npy(files.read(part_path(sample, group, "npy")))
