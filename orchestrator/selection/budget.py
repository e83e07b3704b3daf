"""A budgeted step's keep list: exactly int(n * keep_fraction) of the n pairs that reach it, those with the highest
keys.

The keys stay with their parts: each round of the search for the threshold brings back one histogram for a block of
parts, the last round one number of ties for each part (`pruning.cut`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from orchestrator.artifacts import Artifact
from orchestrator.keeplist import KeepList, pack
from orchestrator.parts import PartResult, Work, build_parts
from orchestrator.progress import Display
from orchestrator.pruning.cut import NUM_BINS, Cut, budget, find_cut, keep_mask
from orchestrator.selection.step import PartRows, Step, part_rows
from orchestrator.stage import Stage

VERSION = 1
MAX_BLOCKS = 256
KeysOf = Callable[[PartRows, NDArray[np.int64]], NDArray[np.uint64]]


def budget_stage(step: Step, *, scored: Artifact | None, keys_of: KeysOf, keep_fraction: float, does: str) -> Stage:
    """The stage that cuts. `keys_of(part, ordinals)` gives the keys of the part's pairs that reached the step, whose
    global ordinals are given; higher is kept, ties by position."""
    made_from = {"settings": step.settings.model_dump(), "scored": scored.fingerprint if scored else None}
    artifact = Artifact.of(
        step.store_uri, "keep", version=VERSION, catalog=step.catalog.artifact, incoming=step.incoming, **made_from
    )

    def build(display: Display) -> Artifact:
        return _cut(step, artifact, keys_of, keep_fraction, display)

    return Stage(
        name=step.name,
        does=f"{does}: {keep_fraction:.1%} of the pairs",
        artifact=artifact,
        build=build,
        keep_fraction=keep_fraction,
    )


def _cut(step: Step, artifact: Artifact, keys_of: KeysOf, keep_fraction: float, display: Display) -> Artifact:
    incoming, parts = KeepList(step.incoming), part_rows(step.catalog)
    wanted = budget(incoming.num_pairs, keep_fraction)
    search = _Search(incoming, keys_of)
    started = time.monotonic()
    cut = find_cut(partial(_total_histogram, search, parts), incoming.num_pairs, wanted)
    ties = np.zeros(len(parts), np.int64)
    for index, number in _over(parts, search.ties, cut):
        ties[index] = number
    items = list(zip(parts, cut.share_ties(ties).tolist(), strict=True))
    display.line(f"{step.name}: threshold found in {time.monotonic() - started:.1f} s")
    build_parts(artifact, items, partial(_mask_work, search, cut.threshold), display=display, name=step.name)
    assert artifact.totals["kept"] == wanted, "a budgeted step keeps exactly its budget"
    return artifact


class _Search:
    """One part's answers, where its keys are."""

    def __init__(self, incoming: KeepList, keys_of: KeysOf):
        self.incoming, self.keys_of = incoming, keys_of

    def keys(self, part: PartRows) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """The rows that reached the step, and their keys."""
        rows = np.flatnonzero(self.incoming.mask(part.index, part.num_rows))
        return rows, self.keys_of(part, rows + part.first_ordinal)

    def histogram(self, parts: list[PartRows], cut: Cut) -> Iterator[NDArray[np.int64]]:
        """The parts' histograms of this round, added up."""
        total = np.zeros(NUM_BINS, np.int64)
        for part in parts:
            total += cut.histogram(self.keys(part)[1])
        yield total

    def ties(self, parts: list[PartRows], cut: Cut) -> Iterator[tuple[int, int]]:
        """Each part's index and its number of ties at the threshold."""
        for part in parts:
            yield part.index, cut.num_ties(self.keys(part)[1])


def _total_histogram(search: _Search, parts: list[PartRows], cut: Cut) -> NDArray[np.int64]:
    total = np.zeros(NUM_BINS, np.int64)
    for histogram in _over(parts, search.histogram, cut):
        total += histogram
    return total


def _over(parts: list[PartRows], answer: Callable[[list[PartRows], Cut], Iterator[Any]], cut: Cut) -> Iterator[Any]:
    blocks = [block.tolist() for block in np.array_split(np.array(parts, object), min(len(parts), MAX_BLOCKS))]
    dataset = ray.data.from_items([{"parts": block} for block in blocks], override_num_blocks=len(blocks))

    def answers(batch: dict[str, Any]) -> dict[str, Any]:
        found = [one for block in batch["parts"] for one in answer(list(block), cut)]
        column = np.empty(len(found), object)
        column[:] = found
        return {"answer": column}

    for row in dataset.map_batches(answers, batch_size=1).iter_rows():
        yield row["answer"]


def _mask_work(search: _Search, threshold: int) -> Work:
    def work(item: tuple[PartRows, int]) -> PartResult:
        part, ties_allowed = item
        rows, keys = search.keys(part)
        kept = keep_mask(keys, threshold, ties_allowed)
        mask = np.zeros(part.num_rows, bool)
        mask[rows[kept]] = True
        return pack(mask, reached=len(rows))

    return work
