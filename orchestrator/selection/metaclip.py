"""MetaCLIP's balancing as stages (arXiv 2309.16671): count the captions that contain each entry of the metadata, sum
the counts, then draw every pair with a probability that depends on the entries in its caption."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.config import MetaClipStep
from orchestrator.data.catalog import Catalog, PartRows, part_groups
from orchestrator.data.keep_list import KeepList
from orchestrator.data.step import Step
from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_npy
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.errors import UserError
from orchestrator.pruning.metaclip import Matcher, entry_probabilities, keep
from orchestrator.selection.filter import Verdict, filter_stage
from orchestrator.selection.metadata_list import EXPECTED, read_entries
from orchestrator.selection.random_stream import seed_of, stream_input
from orchestrator.selection.score_column import FinishedStep, ScoreColumn
from orchestrator.selection.word_counts import kept_captions
from orchestrator.storage import files
from orchestrator.storage.npy import to_npy

logger = logging.getLogger(__name__)
VERSION = 1
MAX_GROUPS = 256


def stages(step: Step) -> list[Stage]:
    """Counts, their sum and the keep list; every t and seed shares the counts.

    Errors: `UserError` for metadata that is not named, does not exist or has another format."""
    settings = step.settings
    assert isinstance(settings, MetaClipStep)
    if settings.metadata is None:
        raise UserError(f"selection.{step.name}.metadata is missing: set it to {EXPECTED}")
    uri = files.absolute(settings.metadata)
    counts = _count_stage(step, uri)
    summed = _sum_stage(step, counts.artifact)
    draw = filter_stage(
        step,
        partial(DrawRule.load, step.catalog, uri, summed.artifact, settings.t, seed_of(step)),
        does=f"draw pairs by their entries, t = {settings.t:g} (seed {settings.seed})",
        loads=True,
        counts=counts.artifact,
        t=settings.t,
        seed=settings.seed,
        **stream_input(step, default="metaclip"),
    )
    return [counts, summed, draw]


def score_column(step: FinishedStep) -> ScoreColumn | None:
    """None: pairs are drawn, and the probabilities are not stored."""
    return None


def _count_stage(step: Step, uri: str) -> Stage:
    entries = read_entries(uri, f"selection.{step.name}.metadata")
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    artifact = Artifact.of(
        step.store_uri,
        "entry_counts",
        version=VERSION,
        catalog=step.catalog.artifact,
        keep=step.incoming,
        entries=digest,
    )
    name = f"count entries, {step.name}"

    return Stage(
        name=name,
        role=Role.COUNT_ENTRIES,
        step=step.name,
        does="count the captions that contain each entry",
        artifact=artifact,
        build=BuildEntryCounts(artifact, step, uri, name),
        scaling=CostScaling(stores=lambda _: 1, num_tasks=by_groups(MAX_GROUPS)),
    )


@dataclass(frozen=True)
class BuildEntryCounts:
    """Builds the counts of the entries of the metadata at `uri`, group by group."""

    artifact: Artifact
    step: Step
    uri: str
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Counts in actors: a matcher of half a million entries takes seconds to build."""
        return PartsJob(
            self.artifact,
            part_groups(self.step.catalog, max_groups=MAX_GROUPS),
            partial(EntryCounts.load, self.step.catalog, KeepList(self.step.incoming), self.uri),
            name=self.name,
            count="pairs",
            num_actors=self.step.num_actors or ray_cluster.num_cpus(),
        ).build(display)


@dataclass(frozen=True)
class EntryCounts:
    """The work on a group of parts: in how many captions each entry occurs."""

    catalog: Catalog
    keep: KeepList
    matcher: Matcher

    @classmethod
    def load(cls, catalog: Catalog, keep: KeepList, uri: str) -> EntryCounts:
        """Builds the matcher of the entries at `uri`."""
        return cls(catalog, keep, Matcher(read_entries(uri)))

    def __call__(self, group: Sequence[PartRows]) -> PartResult:
        """Counts int64 [entries]."""
        counts, num_pairs = np.zeros(self.matcher.num_entries, np.int64), 0
        for part in group:
            for captions in kept_captions(self.catalog, self.keep, part):
                counts += self.matcher.counts(captions)
                num_pairs += len(captions)
        return PartResult({"npy": to_npy(counts)}, {"pairs": num_pairs})


def _sum_stage(step: Step, counts: Artifact) -> Stage:
    # once for all actors: with half a million entries, the counts of all groups are a gigabyte
    artifact = Artifact.of(step.store_uri, "entry_sums", version=VERSION, counts=counts)
    name = f"sum entries, {step.name}"

    return Stage(
        name=name,
        role=Role.SUM_ENTRIES,
        step=step.name,
        does="sum the counts of all groups",
        artifact=artifact,
        build=BuildEntrySums(artifact, counts, name),
        scaling=CostScaling(work=lambda _: 1, stores=lambda _: 1, one_task=True),
    )


@dataclass(frozen=True)
class BuildEntrySums:
    """Builds the sum of the counts of all groups."""

    artifact: Artifact
    counts: Artifact
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Runs the one task."""
        work = partial(EntrySums, self.counts)
        PartsJob(self.artifact, [None], work, name=self.name, count="entries").build(display)
        pairs, entries = self.counts.totals["pairs"], self.artifact.totals["entries"]
        logger.info("%s: %d entries counted in %d captions", self.name, entries, pairs)
        return self.artifact


@dataclass(frozen=True)
class EntrySums:
    """The work of the one task that adds up the counts of all groups."""

    counts: Artifact

    def __call__(self, _: None) -> PartResult:
        """Sums int64 [entries]."""
        num_groups = len(self.counts.parts)
        # read one by one: together they may need more memory than a process has
        groups = (read_npy(part_path(self.counts, group, "npy")) for group in range(num_groups))
        summed = reduce(add, groups)
        return PartResult({"npy": to_npy(summed)}, {"entries": len(summed)})


def read_counts(summed: Artifact) -> NDArray[np.int64]:
    """How many captions contain each entry, int64 [entries]."""
    return read_npy(part_path(summed, 0, "npy"))


@dataclass(frozen=True)
class DrawRule:
    """Draws the pairs of a part; `entries` is the probability of each entry, float64 [entries]."""

    catalog: Catalog
    matcher: Matcher
    entries: NDArray[np.float64]
    seed: int

    @classmethod
    def load(cls, catalog: Catalog, uri: str, summed: Artifact, t: float, seed: int) -> DrawRule:
        """Builds the matcher of the entries at `uri`, and their probabilities from the sums."""
        entries = entry_probabilities(read_counts(summed), t)
        return cls(catalog, Matcher(read_entries(uri)), entries, seed)

    def __call__(self, part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        """The verdict on the given rows."""
        captions = pl.Series(self.catalog.table(part.index, ("caption",))["caption"].take(rows), dtype=pl.String)
        probabilities = self.matcher.keep_probabilities(captions, self.entries)
        kept = keep(probabilities, self.seed, rows + part.first_ordinal)
        unmatched = int((probabilities == 0).sum())
        return Verdict(kept, {"no_entry": unmatched, "balanced_out": int((~kept).sum()) - unmatched})
