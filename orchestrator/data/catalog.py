"""The catalog: what is known of every pair without decoding it, by part, in row order.

One pass over the shards keeps key, caption, size, status and each image's byte offset, so that later stages never join
and training seeks straight to the pairs it wants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config import Limits, SourceConfig
from orchestrator.engine import process_cache
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, Summary, part_path, sums
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.source import Part, Source
from orchestrator.storage import files

VERSION = 1
MAX_EXAMPLES = 20
# a caption may be missing or odd: such a pair still has its row; these have nothing to train on
BROKEN_PAIRS = ("missing_image", "bad_image")
CACHED_PARTS = 8


@dataclass(frozen=True)
class Catalog:
    """The columns of a pool; `table` reads one part's."""

    artifact: Artifact

    def parts_of(self, source: Source) -> list[Part]:
        """The source's parts, which have to be those that the catalog is of.

        Errors: `StoreError` when they are not: by their numbers images would be paired with other captions."""
        parts, rows = source.parts(), self.rows_per_part
        # one that could not be read has no rows in the catalog, and of a probe's parts only the beginning is there
        agree = (part.num_rows is None or n <= part.num_rows for part, n in zip(parts, rows, strict=False))
        if len(parts) != len(rows) or not all(agree):
            raise files.StoreError(
                f"the source has other parts now ({len(parts):,}) than its catalog ({len(rows):,}): shards changed "
                "since they were read; expected shards that stay as they are; the same command reads what changed"
            )
        return parts

    def is_of(self, source: Source) -> bool:
        """Whether the source's shards are still those that were catalogued, unchanged."""
        return source.identity() == self.artifact.made_from["source"]

    def check_source(self, source: Source, config: SourceConfig, *, made: str) -> None:
        """Errors: `UserError` where the catalog is not of the source as it is now; `made`: what the catalog is of."""
        if not self.is_of(source):
            raise UserError(
                f"{config.uri} is no longer what {made} was made of; expected the same shards, unchanged: give the "
                "run again"
            )

    def table(self, index: int, columns: tuple[str, ...]) -> pa.Table:
        """The named columns of a part, in row order."""
        return _read(part_path(self.artifact, index, "parquet"), columns)

    @property
    def rows_per_part(self) -> tuple[int, ...]:
        """Pairs of each part, in order."""
        return tuple(part["rows"] for part in self.artifact.parts)

    @cached_property
    def first_ordinals(self) -> tuple[int, ...]:
        """The ordinal in the pool of each part's first pair."""
        return tuple(accumulate(self.rows_per_part, initial=0))[:-1]


@lru_cache(maxsize=CACHED_PARTS)
def _read(uri: str, columns: tuple[str, ...]) -> pa.Table:
    # cached: the training stream comes back to a part once for each of its windows
    file = files.open_file(uri) if files.is_local(uri) else pa.BufferReader(files.read(uri))
    with file:
        return pq.read_table(file, columns=list(columns))


process_cache.register(_read.cache_clear)


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


def part_groups(catalog: Catalog, *, max_groups: int, pairs_per_group: int = 1) -> list[list[PartRows]]:
    """The parts in runs of about as many pairs, at least `pairs_per_group` where the pool has so many, and at most
    `max_groups` runs."""
    parts = part_rows(catalog)
    num_pairs = sum(part.num_rows for part in parts)
    size = max(pairs_per_group, -(-num_pairs // max_groups), 1)
    groups: dict[int, list[PartRows]] = {}
    for part in parts:
        groups.setdefault(part.first_ordinal // size, []).append(part)
    return list(groups.values())


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def catalog_stage(store_uri: str, source: Source, limits: Limits) -> Stage:
    """The stage that reads every shard once."""
    # of Parquet they are read from every footer: once for what is told and what is built
    parts = source.parts()
    artifact = Artifact.of(store_uri, "catalog", version=VERSION, source=source.identity())

    does = f"read captions, sizes and offsets of {len(parts):,} part{'s' if len(parts) != 1 else ''}"
    build = _BuildCatalog(artifact, source, parts, limits)
    return Stage(name="catalog", role=Role.CATALOG, does=does, artifact=artifact, build=build)


@dataclass(frozen=True)
class _BuildCatalog:
    artifact: Artifact
    source: Source
    parts: list[Part]
    limits: Limits

    def __call__(self, display: Display) -> Artifact:
        job = PartsJob(
            self.artifact,
            self.parts,
            partial(CatalogPart, self.source),
            name="catalog",
            check=partial(_check_limits, self.limits),
            totals=_totals,
        )
        return job.build(display)


@dataclass(frozen=True)
class CatalogPart:
    """The work on a part: reads its captions, sizes, statuses and image offsets."""

    source: Source

    def __call__(self, part: Part) -> PartResult:
        """Return the part's catalog, and what is wrong with it."""
        catalog = self.source.catalog(part)
        summary = {
            "rows": catalog.table.num_rows,
            "broken_shards": int(catalog.broken),
            "problems": catalog.problems,
            "examples": catalog.examples[:MAX_EXAMPLES],
        }
        return PartResult({"parquet": to_parquet(catalog.table)}, summary)


def _totals(summaries: list[Summary]) -> dict[str, Any]:
    examples = [example for summary in summaries for example in summary["examples"]]
    return {**sums(summaries), "examples": examples[:MAX_EXAMPLES]}


def _check_limits(limits: Limits, summaries: list[Summary]) -> None:
    totals = _totals(summaries)
    examples = "; ".join(totals["examples"][:3])
    # Parquet files without a row have no parts
    if not totals.get("rows"):
        raise no_pairs(examples)
    allowed = max(math.ceil(limits.max_broken_shards * len(summaries)), int(limits.max_broken_shards > 0))
    if totals["broken_shards"] > allowed:
        raise UserError(
            f"{totals['broken_shards']} of {len(summaries)} shards are broken, {allowed} allowed ({examples}); "
            f"mend them or raise source.limits.max_broken_shards"
        )
    broken = sum(totals["problems"].get(kind, 0) for kind in BROKEN_PAIRS)
    if broken > limits.max_broken_pairs * totals["rows"]:
        raise UserError(
            f"{broken:,} of {totals['rows']:,} pairs are broken, at most "
            f"{limits.max_broken_pairs:.1%} allowed ({examples}); raise source.limits.max_broken_pairs"
        )


def no_pairs(examples: str = "") -> UserError:
    """What to tell of a source without a single pair, with what was wrong with it where that is known."""
    return UserError(f"the source holds no pairs at all ({examples or 'its shards are empty'}); check source.uri")


def check_catalog(artifact: Artifact, limits: Limits) -> None:
    """Holds a catalog that was there already against this run's limits."""
    _check_limits(limits, artifact.parts)
