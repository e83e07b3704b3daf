"""The sample that k-means is trained on. Every pair that reaches the step is drawn with the same probability, by a
random key that depends on the seed and the pair alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import Clustering
from orchestrator.data.catalog import PartRows, part_groups
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.embedding.vectors import Embedding, is_present
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_npy
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, Summary, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.errors import UserError
from orchestrator.pruning.order import random_scores
from orchestrator.storage.npy import to_npy

logger = logging.getLogger(__name__)
VERSION = 1
MAX_GROUPS = 512
# if a smaller share of a part is drawn, vectors of a kilobyte are too far apart for one range request to cover several
# of them (`storage.ranges`)
SPARSE = 1 / 64
# mixed into the seed: with the keys of the step `random`, a sample would consist of pairs that this step keeps
STREAM = int.from_bytes(b"sample", "big")


def sample_stage(step: Step, settings: Clustering) -> Stage:
    """The stage that collects the vectors of about k * points_per_centroid pairs, float16, one file for each group of
    parts."""
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

    return Stage(
        name=f"sample, {step.name}",
        role=Role.SAMPLE,
        step=step.name,
        does=f"draw at most {num_wanted:,} vectors to train {settings.k:,} centroids",
        artifact=artifact,
        build=BuildSample(artifact, step, settings),
        scaling=CostScaling(stores=lambda pairs: min(pairs, num_wanted), num_tasks=by_groups(MAX_GROUPS)),
    )


@dataclass(frozen=True)
class BuildSample:
    """Builds the sample of the pairs that reach the step."""

    artifact: Artifact
    step: Step
    settings: Clustering

    def __call__(self, display: Display) -> Artifact:
        """Draws group by group. Errors: `UserError` for a sample of fewer vectors than clusters."""
        assert self.step.embedding is not None
        settings, keep = self.settings, KeepList(self.step.incoming)
        share = settings.num_wanted / max(1, keep.num_pairs)
        PartsJob(
            self.artifact,
            part_groups(self.step.catalog, max_groups=MAX_GROUPS),
            partial(SampleGroup, Embedding(self.step.embedding), keep, share, settings.seed),
            name=f"sample, {self.step.name}",
            count="sampled",
            check=partial(_check, self.step.name, settings.k),
        ).build(display)
        sampled = self.artifact.totals["sampled"]
        logger.info("%s: %d vectors drawn to train %d centroids", self.step.name, sampled, settings.k)
        return self.artifact


@dataclass(frozen=True)
class SampleGroup:
    """The work on a group of parts; `share` is the fraction of the pairs to draw, 1 or more for all of them."""

    embedding: Embedding
    keep: KeepList
    share: float
    seed: int

    def __call__(self, group: Sequence[PartRows]) -> PartResult:
        """The vectors drawn from the group, float16 [n, d]."""
        # keys are uniform over 64 bits; as a float, 2**64 - 1025 is the largest number below 2**64, which uint64 lacks
        threshold = np.uint64(min(self.share, 1.0) * (2**64 - 1025))
        chunks = []
        for part in group:
            drawn = random_scores(self.seed ^ STREAM, part.first_ordinal, part.num_rows) <= threshold
            rows = np.flatnonzero(self.keep.mask(part.index, part.num_rows) & (drawn | (self.share >= 1)))
            sparse = len(rows) < SPARSE * part.num_rows
            vectors = self.embedding.image_rows(part.index, rows) if sparse else self.embedding.image(part.index)[rows]
            chunks.append(vectors[is_present(vectors)])
        sample = np.concatenate(chunks)
        return PartResult({"npy": to_npy(sample)}, {"sampled": len(sample)})


def _check(name: str, k: int, summaries: list[Summary]) -> None:
    sampled = sum(summary["sampled"] for summary in summaries)
    if sampled < k:
        raise UserError(
            f"selection.{name}.clustering.k={k:,}, but only {sampled:,} pairs with an embedding reach the step; "
            f"lower k to at most that number"
        )


def read_sample(sample: Artifact, groups: Sequence[int]) -> Iterator[NDArray[np.float16]]:
    """The vectors of each group, float16 [n, d]."""
    for group in groups:
        yield read_npy(part_path(sample, group, "npy"))
