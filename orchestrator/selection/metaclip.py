"""MetaCLIP's balancing as stages (arXiv 2309.16671): count the captions that hold each entry of the metadata, sum the
counts, then draw every pair by the entries it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.errors import UserError
from orchestrator.pruning.metaclip import Matcher, entry_probabilities, keep
from orchestrator.selection.filter import Rule, Verdict, filter_stage
from orchestrator.selection.word_counts import kept_captions
from orchestrator.storage import files
from orchestrator.storage.npy import from_npy, to_npy

VERSION = 1
MAX_GROUPS = 256


def stages(step: Step) -> list[Stage]:
    """Counts, their sum and the keep list; the counts serve every t and seed."""
    settings = step.settings
    assert isinstance(settings, MetaClipStep)
    if settings.metadata is None:
        raise UserError(
            f"selection.{step.name}.metadata is missing: "
            f"set it to a JSON list of entries, or a text file with one a line"
        )
    uri = files.absolute(settings.metadata)
    counts = _count_stage(step, uri)
    summed = _sum_stage(step, counts.artifact)
    draw = filter_stage(
        step,
        partial(_rule, step.catalog, uri, summed.artifact, settings),
        does=f"draw pairs by their entries, t = {settings.t:g} (seed {settings.seed})",
        loads=True,
        counts=counts.artifact,
        t=settings.t,
        seed=settings.seed,
    )
    return [counts, summed, draw]


def read_entries(uri: str) -> list[str]:
    """The metadata's entries. Errors: `UserError` when there is no such file, or it is neither of the two formats."""
    if not files.exists(uri):
        raise UserError(f"no metadata at {uri}: expected a JSON list of entries, or a text file with one a line")
    text = files.read(uri).decode()
    entries = json.loads(text) if text.lstrip().startswith("[") else [line for line in text.splitlines() if line]
    if not entries or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"the metadata at {uri} is no list of entries: expected strings, at least one")
    return list(dict.fromkeys(entries))


def _count_stage(step: Step, uri: str) -> Stage:
    digest = hashlib.sha256(json.dumps(read_entries(uri)).encode()).hexdigest()
    artifact = Artifact.of(
        step.store_uri,
        "entry_counts",
        version=VERSION,
        catalog=step.catalog.artifact,
        keep=step.incoming,
        entries=digest,
    )
    name = f"count entries, {step.name}"

    def build(display: Display) -> Artifact:
        return build_parts(
            artifact,
            part_groups(step.catalog, max_groups=MAX_GROUPS),
            partial(_count_work, step.catalog, KeepList(step.incoming), uri),
            display=display,
            name=name,
            count="pairs",
            # the matcher of half a million entries takes seconds to make: once an actor, not once a group
            num_actors=step.num_actors or ray_cluster.num_cpus(),
        )

    return Stage(
        name=name,
        role=Role.COUNT_ENTRIES,
        step=step.name,
        does="count the captions that hold each entry",
        artifact=artifact,
        build=build,
        scaling=CostScaling(stores=lambda _: 1, num_tasks=by_groups(MAX_GROUPS)),
    )


def _count_work(catalog: Catalog, keep_list: KeepList, uri: str) -> Work:
    matcher = Matcher(read_entries(uri))

    def work(group: Sequence[PartRows]) -> PartResult:
        counts, num_pairs = np.zeros(matcher.num_entries, np.int64), 0
        for part in group:
            for captions in kept_captions(catalog, keep_list, part):
                counts += matcher.counts(captions)
                num_pairs += len(captions)
        return PartResult({"npy": to_npy(counts)}, {"pairs": num_pairs})

    return work


def _sum_stage(step: Step, counts: Artifact) -> Stage:
    # once for all actors: of half a million entries, the counts of all groups are a gigabyte
    artifact = Artifact.of(step.store_uri, "entry_sums", version=VERSION, counts=counts)
    name = f"sum entries, {step.name}"

    def build(display: Display) -> Artifact:
        return build_parts(artifact, [None], partial(_sum_work, counts), display=display, name=name, count="entries")

    return Stage(
        name=name,
        role=Role.SUM_ENTRIES,
        step=step.name,
        does="sum the counts of all groups",
        artifact=artifact,
        build=build,
        scaling=CostScaling(work=lambda _: 1, stores=lambda _: 1, one_task=True),
    )


def _sum_work(counts: Artifact) -> Work:
    def work(_: None) -> PartResult:
        # read as they are added: together they may be more than a process has memory for
        groups = (from_npy(files.read(part_path(counts, group, "npy"))) for group in range(len(counts.parts)))
        summed = reduce(add, groups)
        return PartResult({"npy": to_npy(summed)}, {"entries": len(summed)})

    return work


def read_counts(summed: Artifact) -> NDArray[np.int64]:
    """How many captions hold each entry, int64 [entries]."""
    return from_npy(files.read(part_path(summed, 0, "npy")))


def _rule(catalog: Catalog, uri: str, summed: Artifact, settings: MetaClipStep) -> Rule:
    matcher = Matcher(read_entries(uri))
    entries = entry_probabilities(read_counts(summed), settings.t)

    def rule(part: PartRows, rows: NDArray[np.int64]) -> Verdict:
        captions = pl.Series(catalog.table(part.index, ("caption",))["caption"].take(rows), dtype=pl.String)
        probabilities = matcher.keep_probabilities(captions, entries)
        kept = keep(probabilities, settings.seed, rows + part.first_ordinal)
        unmatched = int((probabilities == 0).sum())
        return Verdict(kept, {"no_entry": unmatched, "balanced_out": int((~kept).sum()) - unmatched})

    return rule
