"""A pool's catalog joined with a list from elsewhere, by key, uid or URL: the one place where anything is joined.

Both sides send their rows to buckets of the value's hash, each bucket is joined by the values themselves, and what was
found is sent back to where the pool's rows lie (`exchange`). Nothing of it passes the driver, and no task holds more
than some millions of rows. Of several rows of the list with one value the first one counts; of several pairs with one
value each is matched; a missing or empty value matches nothing. All of it is counted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.config import MatchBy
from orchestrator.data.catalog import Catalog, PartRows, part_groups
from orchestrator.data.external_list import Foreign, Piece
from orchestrator.engine import shuffle
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Summary, Work, build_parts, part_path, sums
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, PairFlow, Stage, by_groups
from orchestrator.errors import UserError
from orchestrator.pruning.wfpp import word_bucket
from orchestrator.source import Status
from orchestrator.storage.npy import open_npy, to_npy

VERSION = 2
# of the pool, and as many again of the list
MAX_GROUPS = 2048
PAIRS_PER_GROUP = 1_000_000
MAX_BUCKETS = 2048
ROWS_PER_BUCKET = 1_000_000
NUM_EXAMPLES = 3
WITHOUT_IMAGE = (Status.MISSING_IMAGE, Status.BAD_IMAGE)
POOL = pl.Schema({"value": pl.String, "usable": pl.Boolean, "group": pl.Int32, "position": pl.Int64})
LIST = pl.Schema({"value": pl.String, "file": pl.Int32, "row": pl.Int64})


class Match(NamedTuple):
    """For each pair of a part: the list's file, int32 [rows], and the row in it, int64 [rows]; -1 where it has none."""

    file: NDArray[np.int32]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Aligned:
    """A complete alignment; readers load their own part's rows."""

    artifact: Artifact

    def part(self, part: PartRows) -> Match:
        """What each pair of a part was matched with."""
        groups = [group["first_ordinal"] for group in self.artifact.parts]
        group = bisect_right(groups, part.first_ordinal) - 1
        first = part.first_ordinal - groups[group]
        columns = [open_npy(part_path(self.artifact, group, f"{name}.npy")) for name in Match._fields]
        return Match(*(column.read(first, part.num_rows) for column in columns))

    @property
    def totals(self) -> dict[str, Any]:
        """Counts of both sides: `pool_rows`, `pool_empty` (no value), `pool_unmatched`, `duplicate_pool`; `list_rows`,
        `list_empty`, `list_unmatched` (values that no pair has), `duplicate_list`; `matched` pairs; of the pairs with
        an image, `usable` and `usable_unmatched`; and `pool_examples`, `list_examples` of values unmatched."""
        return self.artifact.totals


@dataclass(frozen=True)
class _Group:
    number: int
    parts: tuple[PartRows, ...]

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)


def align_stages(store_uri: str, catalog: Catalog, foreign: Foreign, *, label: str) -> list[Stage]:
    """The stages that match every pair of the pool with a row of the list; `Aligned` reads the last one's artifact.

    Errors, when built: `UserError` where either side has no values at all to match by."""
    sent = Artifact.of(store_uri, "align_sent", version=VERSION, catalog=catalog.artifact, foreign=foreign.identity())
    joined = Artifact.of(store_uri, "align_joined", version=VERSION, sent=sent)
    aligned = Artifact.of(store_uri, "aligned", version=VERSION, joined=joined)

    def build_sent(display: Display) -> Artifact:
        return _send(sent, catalog, foreign, label, display)

    def build_joined(display: Display) -> Artifact:
        work = partial(_join_work, sent, len(sent.parts), sent.totals["num_groups"])
        buckets = range(sent.totals["num_buckets"])
        name, totals = f"join, {label}", partial(_join_totals, sent.totals)
        return build_parts(joined, buckets, work, display=display, name=name, count="matched", totals=totals)

    def build_aligned(display: Display) -> Artifact:
        groups, work = _groups(catalog), partial(_back_work, joined, sent.totals["num_buckets"])
        return build_parts(
            aligned, groups, work, display=display, name=f"align, {label}", totals=lambda _: joined.totals
        )

    def num_rows(pairs: int) -> int:
        return pairs + foreign.num_rows()

    by, by_group, whole = foreign.match_by, by_groups(MAX_GROUPS, PAIRS_PER_GROUP), PairFlow(on_whole_pool=True)
    return [
        Stage(
            name=f"sort, {label}",
            role=Role.SORT_KEYS,
            step=label,
            does=f"sort pool and list by the {by}'s hash",
            artifact=sent,
            build=build_sent,
            flow=whole,
            scaling=CostScaling(work=num_rows, stores=num_rows, num_tasks=by_group),
        ),
        Stage(
            name=f"join, {label}",
            role=Role.JOIN_KEYS,
            step=label,
            does=f"join the two by {by}",
            artifact=joined,
            build=build_joined,
            flow=whole,
            scaling=CostScaling(work=num_rows, num_tasks=lambda size: _num_buckets(size.pool)),
        ),
        Stage(
            name=f"align, {label}",
            role=Role.ORDER_MATCHES,
            step=label,
            does="bring the matches in pool order",
            artifact=aligned,
            build=build_aligned,
            flow=whole,
            scaling=CostScaling(num_tasks=by_group),
        ),
    ]


def _num_buckets(num_rows: int) -> int:
    return min(MAX_BUCKETS, -(-max(1, num_rows) // ROWS_PER_BUCKET))


def _groups(catalog: Catalog) -> list[_Group]:
    groups = part_groups(catalog, max_groups=MAX_GROUPS, pairs_per_group=PAIRS_PER_GROUP)
    return [_Group(number, tuple(parts)) for number, parts in enumerate(groups)]


def _send(sent: Artifact, catalog: Catalog, foreign: Foreign, label: str, display: Display) -> Artifact:
    groups, pieces = _groups(catalog), foreign.pieces()
    list_rows = sum(piece.part.num_rows or 0 for piece in pieces)
    rows = max(sum(group.num_rows for group in groups), list_rows)
    shape = {"num_groups": len(groups), "num_buckets": _num_buckets(rows)}
    return build_parts(
        sent,
        [*groups, *_bundles(pieces, list_rows)],
        partial(_send_work, catalog, foreign, shape["num_buckets"]),
        display=display,
        name=f"sort, {label}",
        check=partial(_check_values, foreign),
        totals=lambda summaries: {**sums(summaries), **shape},
    )


def _bundles(pieces: Sequence[Piece], num_rows: int) -> list[tuple[Piece, ...]]:
    # small files together: every bucket reads a slice of what each bundle sends
    size = max(PAIRS_PER_GROUP, -(-num_rows // MAX_GROUPS))
    bundles: dict[int, tuple[Piece, ...]] = {}
    first = 0
    for piece in pieces:
        bundles[first // size] = (*bundles.get(first // size, ()), piece)
        first += piece.part.num_rows or 0
    return list(bundles.values())


def _send_work(catalog: Catalog, foreign: Foreign, num_buckets: int) -> Work:
    def work(item: _Group | tuple[Piece, ...]) -> PartResult:
        if isinstance(item, _Group):
            rows, side = _pool_rows(catalog, foreign.match_by, item), "pool"
        else:
            rows, side = pl.concat([_list_rows(foreign, piece) for piece in item]), "list"
        valued = rows.filter(pl.col("value").is_not_null() & (pl.col("value") != ""))
        destination = word_bucket(valued["value"], num_buckets).to_numpy()
        counts = {"rows": len(rows), f"{side}_rows": len(rows), f"{side}_empty": len(rows) - len(valued)}
        if side == "pool":
            usable = int(rows["usable"].sum())
            counts |= {"usable": usable, "usable_empty": usable - int(valued["usable"].sum())}
        tables = shuffle.split(valued.to_arrow(), destination, num_buckets)
        return PartResult({"exchange": shuffle.pack(tables)}, counts)

    return work


def _pool_rows(catalog: Catalog, match_by: MatchBy, group: _Group) -> pl.DataFrame:
    tables = [catalog.table(part.index, (match_by, "status")) for part in group.parts]
    table = pa.concat_tables(tables)
    broken = pc.is_in(table["status"], value_set=pa.array(WITHOUT_IMAGE, pa.int8()))
    columns = {
        "value": pl.Series(table[match_by]),
        "usable": ~pl.Series(broken),
        "group": pl.repeat(group.number, table.num_rows, dtype=pl.Int32, eager=True),
        "position": pl.int_range(table.num_rows, eager=True),
    }
    return pl.DataFrame(columns, schema=POOL)


def _list_rows(foreign: Foreign, piece: Piece) -> pl.DataFrame:
    values, first = foreign.values(piece), piece.part.first_row
    columns = {
        "value": values,
        "file": pl.repeat(piece.file, len(values), dtype=pl.Int32, eager=True),
        "row": pl.int_range(first, first + len(values), eager=True),
    }
    return pl.DataFrame(columns, schema=LIST)


def _check_values(foreign: Foreign, summaries: list[Summary]) -> None:
    totals, by = sums(summaries), foreign.match_by
    if totals["pool_rows"] == totals["pool_empty"]:
        raise UserError(f"{foreign.setting}.match_by: got {by!r}, but no pair of the pool has a {by}; match by another")
    if totals.get("list_rows", 0) == totals.get("list_empty", 0):
        raise UserError(
            f"{foreign.setting}: none of the list's {totals.get('list_rows', 0):,} rows has a {by} to match by"
        )


def _join_work(sent: Artifact, num_sources: int, num_groups: int) -> Work:
    def work(bucket: int) -> PartResult:
        uris = [part_path(sent, source, "exchange") for source in range(num_sources)]
        pool = _concat(POOL, shuffle.gather(uris[:num_groups], bucket))
        listed = _concat(LIST, shuffle.gather(uris[num_groups:], bucket))
        # they came in the order of files and rows
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
        tables = shuffle.split(back, found["group"].to_numpy(), num_groups)
        return PartResult({"exchange": shuffle.pack(tables)}, counts)

    return work


def _concat(schema: pl.Schema, tables: Iterable[pa.Table]) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(schema=schema), *(pl.DataFrame(table) for table in tables)])


def _smallest(values: pl.Series) -> list[str]:
    # the same ones however the rows were spread over buckets
    return values.sort().head(NUM_EXAMPLES).to_list()


def _join_totals(sent: dict[str, Any], summaries: list[Summary]) -> dict[str, Any]:
    totals = {**sent, **sums(summaries)}
    totals["rows"] = totals["pool_rows"]
    totals["usable_unmatched"] += totals.pop("usable_empty")
    for name in ("pool_examples", "list_examples"):
        totals[name] = sorted(value for summary in summaries for value in summary[name])[:NUM_EXAMPLES]
    return totals


def _back_work(joined: Artifact, num_buckets: int) -> Work:
    def work(group: _Group) -> PartResult:
        match = Match(np.full(group.num_rows, -1, np.int32), np.full(group.num_rows, -1, np.int64))
        uris = [part_path(joined, bucket, "exchange") for bucket in range(num_buckets)]
        for table in shuffle.gather(uris, group.number):
            position = table["position"].to_numpy()
            for name, column in match._asdict().items():
                column[position] = table[name].to_numpy()
        files = {f"{name}.npy": to_npy(column) for name, column in match._asdict().items()}
        counts = {"rows": group.num_rows, "matched": int((match.file >= 0).sum())}
        return PartResult(files, {"first_ordinal": group.parts[0].first_ordinal, **counts})

    return work
