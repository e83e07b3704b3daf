"""The catalog: everything known about each pair without decoding its image, by part, in row order.

One pass over the shards records key, caption, size, status and the image's byte offset. So later stages need no joins,
and training reads only the images that it wants."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config import Limits, SourceConfig
from orchestrator.data.captionless import UNUSABLE, caption_summary, check_captions
from orchestrator.engine import process_cache
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_parquet
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, Summary, part_path, sums
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.source import Part, Source
from orchestrator.storage import files

logger = logging.getLogger(__name__)
VERSION = 1
# messages about broken pairs that a part keeps for the report
MAX_EXAMPLES = 20
# tables (a part and its columns) in the cache of one process
CACHED_PARTS = 8


@dataclass(frozen=True)
class Catalog:
    """The columns of a pool; `table` reads those of one part."""

    artifact: Artifact

    def parts_of(self, source: Source) -> list[Part]:
        """Return the source's parts, which must be the ones in the catalog.

        Errors: `StoreError` if they are not: images would get the captions of other pairs."""
        parts, rows = source.parts(), self.rows_per_part
        # a part that could not be read has no rows in the catalog, and a probe reads only the beginning of its parts
        agree = (part.num_rows is None or n <= part.num_rows for part, n in zip(parts, rows, strict=False))
        if len(parts) != len(rows) or not all(agree):
            raise files.StoreError(
                f"the source now has {len(parts):,} parts and its catalog {len(rows):,}, or other rows in them: shards "
                "changed since they were read; expected unchanged shards; run the same command again to read them again"
            )
        return parts

    def is_of(self, source: Source) -> bool:
        """Return whether the source's shards are the same as in the catalog, unchanged."""
        return source.identity() == self.artifact.made_from["source"]

    def check_source(self, source: Source, config: SourceConfig, *, made: str) -> None:
        """Raise `UserError` if the source has changed since the catalog; `made` names the run in the message."""
        if not self.is_of(source):
            raise UserError(
                f"{config.uri} has changed since {made} was made; expected the same shards, unchanged: restore them, "
                "or repeat the run with the current shards"
            )

    def table(self, index: int, columns: tuple[str, ...]) -> pa.Table:
        """Return the named columns of a part, in row order."""
        return read_columns(part_path(self.artifact, index, "parquet"), columns)

    @property
    def rows_per_part(self) -> tuple[int, ...]:
        """Return the number of pairs of each part, in order."""
        return tuple(part["rows"] for part in self.artifact.parts)

    @cached_property
    def first_ordinals(self) -> tuple[int, ...]:
        """Return the ordinal in the pool of each part's first pair."""
        return tuple(accumulate(self.rows_per_part, initial=0))[:-1]


@lru_cache(maxsize=CACHED_PARTS)
def read_columns(uri: str, columns: tuple[str, ...]) -> pa.Table:
    """Return the named columns of a part's Parquet file. Errors: `StoreError` if it is damaged."""
    # cached: training returns to a part once for each of its windows
    return read_parquet(uri, columns)


process_cache.register(read_columns.cache_clear)


@dataclass(frozen=True, slots=True)
class PartRows:
    """A part of a pool with a catalog: its index, its rows, and the ordinal of its first row in the pool."""

    index: int
    num_rows: int
    first_ordinal: int


def part_rows(catalog: Catalog) -> list[PartRows]:
    """Return the parts of a complete catalog, in order."""
    rows = catalog.rows_per_part
    return [PartRows(index, n, end - n) for index, (n, end) in enumerate(zip(rows, accumulate(rows), strict=True))]


def part_groups(catalog: Catalog, *, max_groups: int, pairs_per_group: int = 1) -> list[list[PartRows]]:
    """Return the parts in at most `max_groups` runs of about the same number of pairs, at least `pairs_per_group` if
    the pool has that many."""
    parts = part_rows(catalog)
    num_pairs = sum(part.num_rows for part in parts)
    size = max(pairs_per_group, -(-num_pairs // max_groups), 1)
    # a part belongs to the run that its first pair falls into
    groups: dict[int, list[PartRows]] = {}
    for part in parts:
        groups.setdefault(part.first_ordinal // size, []).append(part)
    return list(groups.values())


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def catalog_stage(store_uri: str, source: Source, limits: Limits, *, caption_reader: str | None = None) -> Stage:
    """Return the stage that reads every shard once. `caption_reader` names the first stage that reads captions."""
    # listed once for the title and the build: for Parquet this reads the footer of every file
    parts = source.parts()
    artifact = Artifact.of(store_uri, "catalog", version=VERSION, source=source.identity())

    does = f"read captions, sizes and offsets of {len(parts):,} part{'s' if len(parts) != 1 else ''}"
    build = _BuildCatalog(artifact, source, parts, limits, caption_reader)
    return Stage(name="catalog", role=Role.CATALOG, does=does, artifact=artifact, build=build)


@dataclass(frozen=True)
class _BuildCatalog:
    artifact: Artifact
    source: Source
    parts: list[Part]
    limits: Limits
    caption_reader: str | None

    def __call__(self, display: Display) -> Artifact:
        job = PartsJob(
            self.artifact,
            self.parts,
            partial(CatalogPart, self.source),
            name="catalog",
            check=partial(_check_limits, self.limits, self.caption_reader),
            totals=_totals,
        )
        job.build(display)
        if taken := self.artifact.totals.get("captions_from"):
            logger.info("captions are from: %s", taken)
        return self.artifact


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
            **caption_summary(catalog),
        }
        return PartResult({"parquet": to_parquet(catalog.table)}, summary)


def _totals(summaries: list[Summary]) -> dict[str, Any]:
    examples = [example for summary in summaries for example in summary["examples"]]
    return {**sums(summaries), "examples": examples[:MAX_EXAMPLES]}


def _check_limits(limits: Limits, caption_reader: str | None, summaries: list[Summary]) -> None:
    totals = _totals(summaries)
    examples = "; ".join(totals["examples"][:3])
    # Parquet files without rows have no parts
    if not totals.get("rows"):
        raise no_pairs(examples)
    allowed = max(math.ceil(limits.max_broken_shards * len(summaries)), int(limits.max_broken_shards > 0))
    if totals["broken_shards"] > allowed:
        raise UserError(
            f"{totals['broken_shards']} of {len(summaries)} shards are broken, {allowed} allowed ({examples}); "
            f"replace them or raise source.limits.max_broken_shards"
        )
    broken = sum(totals["problems"].get(kind, 0) for kind in UNUSABLE)
    if broken > limits.max_broken_pairs * totals["rows"]:
        raise UserError(
            f"{broken:,} of {totals['rows']:,} pairs are broken, at most "
            f"{limits.max_broken_pairs:.1%} allowed ({examples}); raise source.limits.max_broken_pairs"
        )
    check_captions(limits, summaries, caption_reader)


def no_pairs(examples: str = "") -> UserError:
    """Return the error for a source without a single pair, with examples of what is wrong with it."""
    return UserError(f"the source has no pairs ({examples or 'its shards are empty'}); check source.uri")


def check_catalog(artifact: Artifact, limits: Limits, caption_reader: str | None) -> None:
    """Check a reused catalog against the limits of this run. Errors: `UserError`."""
    _check_limits(limits, caption_reader, artifact.parts)
