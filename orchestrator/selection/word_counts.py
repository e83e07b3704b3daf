"""Word counts of the pool, without the driver: tasks count the words of groups of parts, then sum them by bucket.

The bucket of a word follows from its hash, so a bucket has all counts of its words, and the task that sums them can
drop the words below `min_count`. The counts reach their bucket through `engine.shuffle`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl
import pyarrow as pa

from orchestrator.data.catalog import Catalog, PartRows, part_rows, to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.engine import shuffle
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_parquet
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.pruning.caption_words import caption_words
from orchestrator.pruning.wfpp import count_words, merge_counts, word_bucket

logger = logging.getLogger(__name__)
VERSION = 1
COUNTS_VERSION = 2
MAX_GROUPS = 512
PAIRS_PER_BUCKET = 2_000_000
MAX_BUCKETS = 256
CHUNK_CAPTIONS = 100_000
# counts that wait to be merged: each merge hashes and sorts all earlier words again
MERGE_ROWS = 4_000_000


def count_stage(
    store_uri: str, catalog: Catalog, keep: Artifact, *, label: str, role: Role = Role.COUNT_WORDS
) -> Stage:
    """Counts the words of the kept captions, all words of each caption, by groups of parts."""
    artifact = Artifact.of(store_uri, "word_counts", version=COUNTS_VERSION, catalog=catalog.artifact, keep=keep)

    return Stage(
        name=f"count words, {label}",
        role=role,
        step=label if role == Role.COUNT_WORDS else None,
        does="tokenise every caption and count its words",
        artifact=artifact,
        build=BuildCounts(artifact, catalog, keep, f"count words, {label}"),
        scaling=CostScaling(num_tasks=by_groups(MAX_GROUPS)),
    )


def words_stage(
    store_uri: str, catalog: Catalog, counts: Artifact, *, min_count: int, label: str, role: Role = Role.SUM_WORDS
) -> Stage:
    """Sums the counts, bucket by bucket, and keeps the words that occur at least `min_count` times."""
    artifact = Artifact.of(store_uri, "words", version=VERSION, counts=counts, min_count=min_count)

    return Stage(
        name=f"sum words, {label}",
        role=role,
        step=label if role == Role.SUM_WORDS else None,
        does=f"sum the counts, keep words with at least {min_count}",
        artifact=artifact,
        build=BuildWords(artifact, catalog, counts, min_count, f"sum words, {label}"),
        scaling=CostScaling(num_tasks=lambda size: _num_buckets(size.pool)),
    )


def num_buckets(catalog: Catalog) -> int:
    """How many buckets the words are hashed into: more for a larger pool. No result depends on it."""
    return _num_buckets(sum(catalog.rows_per_part))


def _num_buckets(num_pairs: int) -> int:
    return min(MAX_BUCKETS, math.ceil(max(1, num_pairs) / PAIRS_PER_BUCKET))


def kept_captions(catalog: Catalog, keep: KeepList, part: PartRows) -> list[pl.Series]:
    """A part's kept captions, in row order, in chunks: the words of a chunk are in memory at once."""
    table = catalog.table(part.index, ("caption",)).filter(pa.array(keep.mask(part.index, part.num_rows)))
    captions = pl.Series("caption", table["caption"], dtype=pl.String)
    return [captions[start : start + CHUNK_CAPTIONS] for start in range(0, len(captions), CHUNK_CAPTIONS)]


@dataclass(frozen=True)
class BuildCounts:
    """Builds the counts of the words, by groups of parts."""

    artifact: Artifact
    catalog: Catalog
    keep: Artifact
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Counts group by group."""
        parts = part_rows(self.catalog)
        size = math.ceil(len(parts) / MAX_GROUPS)
        groups = [parts[start : start + size] for start in range(0, len(parts), size)]
        work = partial(GroupWords, self.catalog, KeepList(self.keep), num_buckets(self.catalog))
        return PartsJob(self.artifact, groups, work, name=self.name, count="pairs").build(display)


@dataclass(frozen=True)
class GroupWords:
    """The work on a group of parts: its words and their counts, by bucket."""

    catalog: Catalog
    keep: KeepList
    num_buckets: int

    def __call__(self, group: Sequence[PartRows]) -> PartResult:
        """One table of words and counts for each bucket."""
        total, num_pairs = WordSum(), 0
        for part in group:
            for captions in kept_captions(self.catalog, self.keep, part):
                total.add(count_words(caption_words(captions)))
                num_pairs += len(captions)
        counts = total.table()
        buckets = word_bucket(counts["word"], self.num_buckets).to_numpy()
        by_bucket = shuffle.split(counts.to_arrow(), buckets, self.num_buckets)
        return PartResult({"exchange": shuffle.pack(by_bucket)}, {"pairs": num_pairs})


@dataclass(frozen=True)
class BuildWords:
    """Builds the table of the words that occur at least `min_count` times, by bucket."""

    artifact: Artifact
    catalog: Catalog
    counts: Artifact
    min_count: int
    name: str

    def __call__(self, display: Display) -> Artifact:
        """Sums bucket by bucket."""
        work = partial(BucketWords, self.counts, len(self.counts.parts), self.min_count)
        buckets = range(num_buckets(self.catalog))
        PartsJob(self.artifact, buckets, work, name=self.name, count="words").build(display)
        totals = self.artifact.totals
        numbers = (totals["words"], totals["kept_words"], self.min_count)
        logger.info("%s: %d distinct words, %d of them occur at least %d times", self.name, *numbers)
        return self.artifact


@dataclass(frozen=True)
class BucketWords:
    """The work on a bucket: the sum of the counts of all groups, without the rare words."""

    counts: Artifact
    num_groups: int
    min_count: int

    def __call__(self, bucket: int) -> PartResult:
        """The words that occur at least `min_count` times, most frequent first."""
        uris = [part_path(self.counts, group, "exchange") for group in range(self.num_groups)]
        total = WordSum()
        for table in shuffle.gather(uris, bucket):
            total.add(pl.DataFrame(table))
        summed = total.table()
        kept = summed.filter(pl.col("count") >= self.min_count).sort("count", "word", descending=[True, False])
        numbers = {
            "words": len(summed),
            "kept_words": len(kept),
            "occurrences": int(summed["count"].sum()),
            "kept_occurrences": int(kept["count"].sum()),
        }
        return PartResult({"parquet": to_parquet(kept.to_arrow())}, numbers)


class WordSum:
    """The sum of any number of tables of words and counts. Tables are merged once they have `MERGE_ROWS` rows together,
    or twice as many as the last merge left: so a row is merged only a few times."""

    def __init__(self) -> None:
        self._waiting: list[pl.DataFrame] = []
        self._num_rows, self._max_rows = 0, MERGE_ROWS

    def add(self, counts: pl.DataFrame) -> None:
        """Adds a table, as `count_words` returns it."""
        self._waiting.append(counts)
        self._num_rows += len(counts)
        if self._num_rows > self._max_rows:
            self._waiting = [merge_counts(self._waiting)]
            self._num_rows = len(self._waiting[0])
            self._max_rows = max(MERGE_ROWS, 2 * self._num_rows)

    def table(self) -> pl.DataFrame:
        """The sum so far: each word once, sorted by word."""
        return merge_counts(self._waiting)


def read_words(words: Artifact) -> pl.DataFrame:
    """The kept words and their counts, of all buckets: for actors, never for the driver."""
    return pl.concat(read_bucket(words, index) for index in range(len(words.parts)))


def read_bucket(words: Artifact, index: int) -> pl.DataFrame:
    """The kept words and their counts of one bucket, most frequent first."""
    return pl.DataFrame(read_parquet(part_path(words, index, "parquet")))
