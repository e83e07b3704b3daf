"""The work of a join's tasks: rows to buckets, the join of a bucket, and the matches back in the pool's order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.config import MatchBy
from orchestrator.data.catalog import Catalog, PartRows
from orchestrator.data.external_list import ExternalList, Piece
from orchestrator.engine import shuffle
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import PartResult, part_path
from orchestrator.pruning.wfpp import word_bucket
from orchestrator.source import has_image
from orchestrator.storage.npy import to_npy

NUM_EXAMPLES = 3
POOL = pl.Schema({"value": pl.String, "usable": pl.Boolean, "group": pl.Int32, "position": pl.Int64})
LIST = pl.Schema({"value": pl.String, "file": pl.Int32, "row": pl.Int64})


class Match(NamedTuple):
    """For each pair of a part: the list's file, int32 [rows], and the row in it, int64 [rows]; -1 without a match."""

    file: NDArray[np.int32]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """A run of parts of the pool, the unit of the first and the last stage."""

    number: int
    parts: tuple[PartRows, ...]

    @property
    def num_rows(self) -> int:
        """Return the pairs of all its parts."""
        return sum(part.num_rows for part in self.parts)


@dataclass(frozen=True)
class SendRows:
    """The work on a group of parts of the pool, or on a bundle of pieces of the list: its rows by bucket."""

    catalog: Catalog
    listed: ExternalList
    num_buckets: int

    def __call__(self, item: Group | tuple[Piece, ...]) -> PartResult:
        """Return one table per bucket, and the counts of the item's side."""
        if isinstance(item, Group):
            rows, side = _pool_rows(self.catalog, self.listed.match_by, item), "pool"
        else:
            rows, side = pl.concat([_list_rows(self.listed, piece) for piece in item]), "list"
        valued = rows.filter(pl.col("value").is_not_null() & (pl.col("value") != ""))
        bucket = word_bucket(valued["value"], self.num_buckets).to_numpy()
        counts = {"rows": len(rows), f"{side}_rows": len(rows), f"{side}_empty": len(rows) - len(valued)}
        if side == "pool":
            usable = int(rows["usable"].sum())
            counts |= {"usable": usable, "usable_empty": usable - int(valued["usable"].sum())}
        tables = shuffle.split(valued.to_arrow(), bucket, self.num_buckets)
        return PartResult({"exchange": shuffle.pack(tables)}, counts)


def _pool_rows(catalog: Catalog, match_by: MatchBy, group: Group) -> pl.DataFrame:
    table = pa.concat_tables([catalog.table(part.index, (match_by, "status")) for part in group.parts])
    columns = {
        "value": pl.Series(table[match_by]),
        "usable": pl.Series(has_image(table["status"])),
        "group": pl.repeat(group.number, table.num_rows, dtype=pl.Int32, eager=True),
        "position": pl.int_range(table.num_rows, eager=True),
    }
    return pl.DataFrame(columns, schema=POOL)


def _list_rows(listed: ExternalList, piece: Piece) -> pl.DataFrame:
    values, first = listed.values(piece), piece.part.first_row
    columns = {
        "value": values,
        "file": pl.repeat(piece.file, len(values), dtype=pl.Int32, eager=True),
        "row": pl.int_range(first, first + len(values), eager=True),
    }
    return pl.DataFrame(columns, schema=LIST)


@dataclass(frozen=True)
class JoinBucket:
    """The work on a bucket: joins its rows. The first `num_groups` of the sources are groups of the pool."""

    sent: Artifact
    num_sources: int
    num_groups: int

    def __call__(self, bucket: int) -> PartResult:
        """Return one table of matches per group, and the bucket's counts."""
        uris = [part_path(self.sent, source, "exchange") for source in range(self.num_sources)]
        pool = _concat(POOL, shuffle.gather(uris[: self.num_groups], bucket))
        listed = _concat(LIST, shuffle.gather(uris[self.num_groups :], bucket))
        # `gather` keeps the order of the sources, so this is the first row of the list in the order of its files
        first = listed.unique("value", keep="first", maintain_order=True)
        found = pool.join(first, on="value", how="inner")
        pool_left = pool.join(first, on="value", how="anti")
        list_left = first.join(pool, on="value", how="anti")
        counts = {
            "matched": len(found),
            "pool_unmatched": len(pool_left),
            "usable_unmatched": int(pool_left["usable"].sum()),
            "list_unmatched": len(list_left),
            "duplicate_pool": len(pool) - pool["value"].n_unique(),
            "duplicate_list": len(listed) - len(first),
            "pool_examples": _smallest(pool_left.filter("usable")["value"]),
            "list_examples": _smallest(list_left["value"]),
        }
        back = found.select("position", "file", "row").to_arrow()
        tables = shuffle.split(back, found["group"].to_numpy(), self.num_groups)
        return PartResult({"exchange": shuffle.pack(tables)}, counts)


def _concat(schema: pl.Schema, tables: Iterable[pa.Table]) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(schema=schema), *(pl.DataFrame(table) for table in tables)])


def _smallest(values: pl.Series) -> list[str]:
    # sorted, so the examples do not depend on the number of buckets
    return values.sort().head(NUM_EXAMPLES).to_list()


@dataclass(frozen=True)
class OrderGroup:
    """The work on a group of parts: collects its matches from all buckets."""

    buckets: Artifact
    num_buckets: int

    def __call__(self, group: Group) -> PartResult:
        """Return the files and rows of the matches, one array each, in the order of the group's pairs."""
        match = Match(np.full(group.num_rows, -1, np.int32), np.full(group.num_rows, -1, np.int64))
        uris = [part_path(self.buckets, bucket, "exchange") for bucket in range(self.num_buckets)]
        for table in shuffle.gather(uris, group.number):
            position = table["position"].to_numpy()
            for name, column in match._asdict().items():
                column[position] = table[name].to_numpy()
        files = {f"{name}.npy": to_npy(column) for name, column in match._asdict().items()}
        counts = {"rows": group.num_rows, "matched": int((match.file >= 0).sum())}
        return PartResult(files, {"first_ordinal": group.parts[0].first_ordinal, **counts})
