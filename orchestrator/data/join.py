"""A pool's catalog joined with an external list by key, uid or URL: the only join of the project.

Three stages, a shuffle through the store (`engine.shuffle`): both sides send their rows to buckets by the hash of the
value; each bucket is joined by the values themselves; the matches are sent back and put in the order of the pool's
rows. The driver sees counts only, and no task holds more than a few million rows. If several rows of the list have
the same value, the first one counts. If several pairs have the same value, each of them is matched. A missing or empty
value matches nothing. All of this is counted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.data.catalog import Catalog, PartRows, part_groups
from orchestrator.data.external_list import ExternalList, Piece
from orchestrator.data.join_tasks import NUM_EXAMPLES, Group, JoinBucket, Match, OrderGroup, SendRows
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import open_rows
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartsJob, Summary, part_path, sums
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, PairFlow, Size, Stage, by_groups
from orchestrator.errors import UserError

VERSION = 2
# groups of parts of the pool, and at most as many bundles of pieces of the list
MAX_GROUPS = 2048
PAIRS_PER_GROUP = 1_000_000
MAX_BUCKETS = 2048
ROWS_PER_BUCKET = 1_000_000


@dataclass(frozen=True)
class Joined:
    """A complete join; a reader loads the rows of its own part only."""

    artifact: Artifact

    def part(self, part: PartRows) -> Match:
        """Return the matches of a part's pairs."""
        groups = [group["first_ordinal"] for group in self.artifact.parts]
        group = bisect_right(groups, part.first_ordinal) - 1
        first = part.first_ordinal - groups[group]
        columns = [open_rows(part_path(self.artifact, group, f"{name}.npy")) for name in Match._fields]
        return Match(*(column.read(first, part.num_rows) for column in columns))

    @property
    def totals(self) -> dict[str, Any]:
        """Counts of both sides: `pool_rows`, `pool_empty` (no value), `pool_unmatched`, `duplicate_pool`; `list_rows`,
        `list_empty`, `list_unmatched` (values that no pair has), `duplicate_list`; `matched` pairs; of the pairs with
        an image, `usable` and `usable_unmatched`; `pool_examples` and `list_examples` of unmatched values."""
        return self.artifact.totals


def join_stages(store_uri: str, catalog: Catalog, listed: ExternalList, *, label: str) -> list[Stage]:
    """Return the stages that match every pair of the pool with a row of the list; `Joined` reads the last artifact.

    `label` is the selection step or the embedding that the list belongs to. Errors, when built: `UserError` if one of
    the sides has no values at all to match by."""
    # the kinds and the keyword are part of the fingerprints, so they keep their names
    sent = Artifact.of(store_uri, "align_sent", version=VERSION, catalog=catalog.artifact, foreign=listed.identity())
    buckets = Artifact.of(store_uri, "align_joined", version=VERSION, sent=sent)
    matches = Artifact.of(store_uri, "aligned", version=VERSION, joined=buckets)
    by, by_group = listed.match_by, by_groups(MAX_GROUPS, PAIRS_PER_GROUP)
    rows = _RowsOfBoth(listed)
    stage = partial(Stage, step=label, flow=PairFlow(on_whole_pool=True))
    return [
        stage(
            name=f"sort, {label}",
            role=Role.SORT_KEYS,
            does=f"sort pool and list by the {by}'s hash",
            artifact=sent,
            build=_Send(sent, catalog, listed, label),
            scaling=CostScaling(work=rows, stores=rows, num_tasks=by_group),
        ),
        stage(
            name=f"join, {label}",
            role=Role.JOIN_KEYS,
            does=f"join the two by {by}",
            artifact=buckets,
            build=_JoinBuckets(buckets, sent, label),
            scaling=CostScaling(work=rows, num_tasks=_buckets_of_pool),
        ),
        stage(
            name=f"align, {label}",
            role=Role.ORDER_MATCHES,
            does="put the matches in the pool's order",
            artifact=matches,
            build=_OrderMatches(matches, buckets, sent, catalog, label),
            scaling=CostScaling(num_tasks=by_group),
        ),
    ]


@dataclass(frozen=True)
class _RowsOfBoth:
    """The rows of pool and list, from the pairs of the pool."""

    listed: ExternalList

    def __call__(self, pairs: int) -> int:
        return pairs + self.listed.num_rows()


def _buckets_of_pool(size: Size) -> int:
    return _num_buckets(size.pool)


def _num_buckets(num_rows: int) -> int:
    return min(MAX_BUCKETS, -(-max(1, num_rows) // ROWS_PER_BUCKET))


def _groups(catalog: Catalog) -> list[Group]:
    groups = part_groups(catalog, max_groups=MAX_GROUPS, pairs_per_group=PAIRS_PER_GROUP)
    return [Group(number, tuple(parts)) for number, parts in enumerate(groups)]


@dataclass(frozen=True)
class _Send:
    """Builds the first stage: the rows of both sides by bucket."""

    artifact: Artifact
    catalog: Catalog
    listed: ExternalList
    label: str

    def __call__(self, display: Display) -> Artifact:
        groups, pieces = _groups(self.catalog), self.listed.pieces()
        list_rows = sum(piece.part.num_rows or 0 for piece in pieces)
        num_buckets = _num_buckets(max(sum(group.num_rows for group in groups), list_rows))
        job = PartsJob(
            self.artifact,
            [*groups, *_bundles(pieces, list_rows)],
            partial(SendRows, self.catalog, self.listed, num_buckets),
            name=f"sort, {self.label}",
            check=partial(_check_values, self.listed),
            totals=partial(_send_totals, num_groups=len(groups), num_buckets=num_buckets),
        )
        return job.build(display)


def _send_totals(summaries: list[Summary], *, num_groups: int, num_buckets: int) -> dict[str, Any]:
    return {**sums(summaries), "num_groups": num_groups, "num_buckets": num_buckets}


def _bundles(pieces: Sequence[Piece], num_rows: int) -> list[tuple[Piece, ...]]:
    # small files share a bundle: every bucket reads a slice of the file of each bundle
    size = max(PAIRS_PER_GROUP, -(-num_rows // MAX_GROUPS))
    bundles: dict[int, tuple[Piece, ...]] = {}
    first = 0
    for piece in pieces:
        bundles[first // size] = (*bundles.get(first // size, ()), piece)
        first += piece.part.num_rows or 0
    return list(bundles.values())


def _check_values(listed: ExternalList, summaries: list[Summary]) -> None:
    totals, by, setting = sums(summaries), listed.match_by, listed.setting
    if totals["pool_rows"] == totals["pool_empty"]:
        raise UserError(f"{setting}.match_by: got {by!r}, but no pair of the pool has a {by}; match by another")
    if not totals.get("list_rows"):
        raise UserError(f"{setting}.uri: the list has no rows; expected rows with a {by}")
    if totals["list_rows"] == totals.get("list_empty", 0):
        raise UserError(f"{setting}: none of the list's {totals['list_rows']:,} rows has a {by} to match by")


@dataclass(frozen=True)
class _JoinBuckets:
    """Builds the second stage: the matches of each bucket, by group of the pool."""

    artifact: Artifact
    sent: Artifact
    label: str

    def __call__(self, display: Display) -> Artifact:
        totals = self.sent.totals
        job = PartsJob(
            self.artifact,
            range(totals["num_buckets"]),
            partial(JoinBucket, self.sent, len(self.sent.parts), totals["num_groups"]),
            name=f"join, {self.label}",
            count="matched",
            totals=partial(_join_totals, totals),
        )
        return job.build(display)


def _join_totals(sent: dict[str, Any], summaries: list[Summary]) -> dict[str, Any]:
    totals = {**sent, **sums(summaries)}
    totals["rows"] = totals["pool_rows"]
    totals["usable_unmatched"] += totals.pop("usable_empty")
    for name in ("pool_examples", "list_examples"):
        totals[name] = sorted(value for summary in summaries for value in summary[name])[:NUM_EXAMPLES]
    return totals


@dataclass(frozen=True)
class _OrderMatches:
    """Builds the third stage: the matches in the order of the pool's rows. Its totals are those of the join."""

    artifact: Artifact
    buckets: Artifact
    sent: Artifact
    catalog: Catalog
    label: str

    def __call__(self, display: Display) -> Artifact:
        totals: Callable[[list[Summary]], dict[str, Any]] = partial(_same_totals, self.buckets)
        work = partial(OrderGroup, self.buckets, self.sent.totals["num_buckets"])
        job = PartsJob(self.artifact, _groups(self.catalog), work, name=f"align, {self.label}", totals=totals)
        return job.build(display)


def _same_totals(buckets: Artifact, summaries: list[Summary]) -> dict[str, Any]:
    return buckets.totals
