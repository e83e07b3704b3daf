"""The catalog: the columns of every pair that need no image decoding, by part, in row order.

One pass over the shards stores the key, the caption, the size, the status and the byte offset of each image. All later
stages use the same row order, so they need no joins, and training seeks directly to the pairs that it needs."""

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
from orchestrator.engine.parts import PartResult, Summary, Work, build_parts, part_path, sums
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.source import Part, Source
from orchestrator.storage import files

VERSION = 1
# messages about broken pairs that a part keeps for the report
MAX_EXAMPLES = 20
# problems that leave nothing to train on. A pair without a usable caption is no such problem: filters decide about it
BROKEN_PAIRS = ("missing_image", "bad_image")
# tables (a part and its columns) in the cache of one process
CACHED_PARTS = 8


@dataclass(frozen=True)
class Catalog:
    """A complete catalog of a pool. `table` reads the columns of one part."""

    artifact: Artifact

    def parts_of(self, source: Source) -> list[Part]:
        """Return the parts of the source, after a check that they are the parts of the catalog.

        Errors: `StoreError` if they differ: images would be paired with the captions of other rows."""
        parts, rows = source.parts(), self.rows_per_part
        # an unreadable part has no rows in the catalog, and the parts of a probe are cut short
        agree = (part.num_rows is None or n <= part.num_rows for part, n in zip(parts, rows, strict=False))
        if len(parts) != len(rows) or not all(agree):
            raise files.StoreError(
                f"the source has other parts now ({len(parts):,}) than its catalog ({len(rows):,}): shards changed "
                "during the run; expected shards that do not change; run the same command again to read the new shards"
            )
        return parts

    def is_of(self, source: Source) -> bool:
        """Return whether the source has the same, unchanged shards as when the catalog was built."""
        return source.identity() == self.artifact.made_from["source"]

    def check_source(self, source: Source, config: SourceConfig, *, made: str) -> None:
        """Check that the source has not changed since the catalog was built. `made`: its user, for the message.

        Errors: `UserError` if it has changed."""
        if not self.is_of(source):
            raise UserError(
                f"{config.uri} has changed since {made} was made; expected the same shards, unchanged; repeat the "
                "run with the new shards"
            )

    def table(self, index: int, columns: tuple[str, ...]) -> pa.Table:
        """Return the named columns of a part, in row order."""
        return _read(part_path(self.artifact, index, "parquet"), columns)

    @property
    def rows_per_part(self) -> tuple[int, ...]:
        """Number of pairs in each part, in order."""
        return tuple(part["rows"] for part in self.artifact.parts)

    @cached_property
    def first_ordinals(self) -> tuple[int, ...]:
        """The ordinal, in the whole pool, of the first pair of each part."""
        return tuple(accumulate(self.rows_per_part, initial=0))[:-1]


@lru_cache(maxsize=CACHED_PARTS)
def _read(uri: str, columns: tuple[str, ...]) -> pa.Table:
    # cached because training returns to a part once for each window of its sample order
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
    """Return the parts of a complete catalog, in order."""
    rows = catalog.rows_per_part
    return [PartRows(index, n, end - n) for index, (n, end) in enumerate(zip(rows, accumulate(rows), strict=True))]


def part_groups(catalog: Catalog, *, max_groups: int, pairs_per_group: int = 1) -> list[list[PartRows]]:
    """Split the parts into runs of neighbours with about the same number of pairs.

    There are at most `max_groups` runs, with about `pairs_per_group` pairs or more each."""
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


def catalog_stage(store_uri: str, source: Source, limits: Limits) -> Stage:
    """Return the stage that reads every shard once."""
    # listed once, for the description and for the build: the parts of Parquet files come from the footers of all files
    parts = source.parts()
    artifact = Artifact.of(store_uri, "catalog", version=VERSION, source=source.identity())

    def build(display: Display) -> Artifact:
        build_parts(
            artifact,
            parts,
            partial(_catalog_work, source),
            display=display,
            name="catalog",
            check=partial(_check_limits, limits),
            totals=_totals,
        )
        return artifact

    what = f"read captions, sizes and offsets of {len(parts):,} part{'s' if len(parts) != 1 else ''}"
    return Stage(name="catalog", role=Role.CATALOG, does=what, artifact=artifact, build=build)


def _catalog_work(source: Source) -> Work:
    def work(part: Part) -> PartResult:
        catalog = source.catalog(part)
        summary = {
            "rows": catalog.table.num_rows,
            "broken_shards": int(catalog.broken),
            "problems": catalog.problems,
            "examples": catalog.examples[:MAX_EXAMPLES],
        }
        return PartResult({"parquet": to_parquet(catalog.table)}, summary)

    return work


def _totals(summaries: list[Summary]) -> dict[str, Any]:
    examples = [example for summary in summaries for example in summary["examples"]]
    return {**sums(summaries), "examples": examples[:MAX_EXAMPLES]}


def _check_limits(limits: Limits, summaries: list[Summary]) -> None:
    totals = _totals(summaries)
    examples = "; ".join(totals["examples"][:3])
    # without any summary there are no totals: a Parquet file without rows has no parts
    if not totals.get("rows"):
        raise no_pairs(examples)
    allowed = max(math.ceil(limits.max_broken_shards * len(summaries)), int(limits.max_broken_shards > 0))
    if totals["broken_shards"] > allowed:
        raise UserError(
            f"{totals['broken_shards']} of {len(summaries)} shards are broken, {allowed} allowed ({examples}); "
            "fix or remove them, or raise source.limits.max_broken_shards"
        )
    broken = sum(totals["problems"].get(kind, 0) for kind in BROKEN_PAIRS)
    if broken > limits.max_broken_pairs * totals["rows"]:
        raise UserError(
            f"{broken:,} of {totals['rows']:,} pairs are broken, at most "
            f"{limits.max_broken_pairs:.1%} allowed ({examples}); raise source.limits.max_broken_pairs"
        )


def no_pairs(examples: str = "") -> UserError:
    """Return the error for a source without pairs. `examples`: known problems of its shards."""
    return UserError(f"the source has no pairs ({examples or 'its shards are empty'}); check source.uri")


def check_catalog(artifact: Artifact, limits: Limits) -> None:
    """Check a reused catalog against the limits of this run. Errors: `UserError` if it has too many broken pairs."""
    _check_limits(limits, artifact.parts)
