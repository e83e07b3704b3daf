"""A selection step as every method gets it, and the items its passes go over."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog
from orchestrator.config import AllStep, RandomStep, WfppStep


@dataclass(frozen=True, kw_only=True)
class Step:
    """`incoming` is the keep list that reaches the step, perhaps not computed yet; `num_actors` None: one for each
    CPU."""

    name: str
    settings: WfppStep | RandomStep | AllStep
    store_uri: str
    catalog: Catalog
    incoming: Artifact
    num_actors: int | None


@dataclass(frozen=True, slots=True)
class PartRows:
    """A part of a catalogued pool: its index, its rows, and the global ordinal of its first row."""

    index: int
    num_rows: int
    first_ordinal: int


def part_rows(catalog: Catalog) -> list[PartRows]:
    """The parts of a complete catalog, in order."""
    rows = catalog.rows_per_part
    return [PartRows(index, n, end - n) for index, (n, end) in enumerate(zip(rows, accumulate(rows), strict=True))]
