"""Look up the pairs to show in the catalog, by position; several parts at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.catalog import Catalog, part_rows
from orchestrator.report.schema import Report
from orchestrator.report.schema_pairs import Example

MAX_CAPTION_CHARS = 300
PARTS_AT_ONCE = 8


def example(part: int, row: int, label: dict[str, Any], score: float | None) -> Example:
    """Return a pair with its label (`key`, `caption`) from the catalog."""
    caption = (label["caption"] or "")[:MAX_CAPTION_CHARS]
    return Example(part=part, row=row, key=label["key"], caption=caption, score=score)


def examples_at(catalog: Catalog, scores: dict[int, float | None]) -> dict[int, Example]:
    """Return the pairs with the given global ordinals, each with its score, by ordinal."""
    ordinals = np.array(sorted(scores), np.int64)
    firsts = np.array([part.first_ordinal for part in part_rows(catalog)], np.int64)
    # an empty part starts at the same ordinal as the next part; the last of them contains the pair
    parts = np.searchsorted(firsts, ordinals, side="right") - 1
    shown = {}
    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        runs = [(int(part), ordinals[parts == part] - firsts[part]) for part in np.unique(parts)]
        for (part, rows), labels in zip(runs, pool.map(lambda run: _labels(catalog, *run), runs), strict=True):
            for row, label in zip(rows.tolist(), labels, strict=True):
                ordinal = int(firsts[part]) + row
                shown[ordinal] = example(part, row, label, scores[ordinal])
    return shown


def _labels(catalog: Catalog, part: int, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    return catalog.table(part, ("key", "caption")).take(pa.array(rows)).to_pylist()


def pairs_shown(report: Report) -> list[Example]:
    """Return all pairs that the page shows."""
    return list(chain(_examples(report), _sheets(report), _duplicates(report)))


def _examples(report: Report) -> Iterator[Example]:
    for group in report.examples.groups if report.examples else ():
        yield from group.pairs


def _sheets(report: Report) -> Iterator[Example]:
    for clusters in report.clusters.values():
        for sheet in (*clusters.densest, *clusters.most_spread):
            yield from (*sheet.kept, *sheet.pruned)


def _duplicates(report: Report) -> Iterator[Example]:
    for found in report.duplicates.values():
        for group in found.largest:
            yield from (group.kept, *group.copies)
