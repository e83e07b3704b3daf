"""Word counts of the pool, never on the driver: counted by groups of parts, summed by buckets of the words' hash.

Counting tasks send their words to the bucket of their hash (`exchange`); the summing task of a bucket drops the words
below `min_count` there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import polars as pl
import pyarrow as pa

from orchestrator.data.catalog import Catalog, PartRows, part_rows, to_parquet
from orchestrator.data.keep_list import KeepList
from orchestrator.engine import shuffle
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Work, build_parts, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import CostScaling, Stage, by_groups
from orchestrator.pruning.caption_words import caption_words
from orchestrator.pruning.wfpp import count_words, merge_counts, word_bucket
from orchestrator.storage import files

VERSION = 1
COUNTS_VERSION = 2
MAX_GROUPS = 512
PAIRS_PER_BUCKET = 2_000_000
MAX_BUCKETS = 256
CHUNK_CAPTIONS = 100_000
# counts that wait to be merged: a merge hashes and sorts all that was merged before again
MERGE_ROWS = 4_000_000


def count_stage(
    store_uri: str, catalog: Catalog, keep: Artifact, *, label: str, role: Role = Role.COUNT_WORDS
) -> Stage:
    """Counts the words of the kept captions, whole, by groups of parts."""
    artifact = Artifact.of(store_uri, "word_counts", version=COUNTS_VERSION, catalog=catalog.artifact, keep=keep)

    def build(display: Display) -> Artifact:
        parts = part_rows(catalog)
        size = math.ceil(len(parts) / MAX_GROUPS)
        groups = [parts[start : start + size] for start in range(0, len(parts), size)]
        return build_parts(
            artifact,
            groups,
            partial(_count_work, catalog, KeepList(keep), num_buckets(catalog)),
            display=display,
            name=f"count words, {label}",
            count="pairs",
        )

    return Stage(
        name=f"count words, {label}",
        role=role,
        step=label if role == Role.COUNT_WORDS else None,
        does="tokenise every caption and count its words",
        artifact=artifact,
        build=build,
        scaling=CostScaling(num_tasks=by_groups(MAX_GROUPS)),
    )


def words_stage(
    store_uri: str, catalog: Catalog, counts: Artifact, *, min_count: int, label: str, role: Role = Role.SUM_WORDS
) -> Stage:
    """Sums the counts, bucket by bucket, and keeps the words with at least `min_count`."""
    artifact = Artifact.of(store_uri, "words", version=VERSION, counts=counts, min_count=min_count)

    def build(display: Display) -> Artifact:
        work = partial(_sum_work, counts, len(counts.parts), min_count)
        return build_parts(
            artifact, range(num_buckets(catalog)), work, display=display, name=f"sum words, {label}", count="words"
        )

    return Stage(
        name=f"sum words, {label}",
        role=role,
        step=label if role == Role.SUM_WORDS else None,
        does=f"sum the counts, keep words with at least {min_count}",
        artifact=artifact,
        build=build,
        scaling=CostScaling(num_tasks=lambda size: _num_buckets(size.pool)),
    )


def num_buckets(catalog: Catalog) -> int:
    """Buckets of the words' hash, by the size of the pool; no result depends on it."""
    return _num_buckets(sum(catalog.rows_per_part))


def _num_buckets(num_pairs: int) -> int:
    return min(MAX_BUCKETS, math.ceil(max(1, num_pairs) / PAIRS_PER_BUCKET))


def kept_captions(catalog: Catalog, keep: KeepList, part: PartRows) -> list[pl.Series]:
    """A part's kept captions, in row order, in chunks that bound the memory of their words."""
    table = catalog.table(part.index, ("caption",)).filter(pa.array(keep.mask(part.index, part.num_rows)))
    captions = pl.Series("caption", table["caption"], dtype=pl.String)
    return [captions[start : start + CHUNK_CAPTIONS] for start in range(0, len(captions), CHUNK_CAPTIONS)]


def _count_work(catalog: Catalog, keep: KeepList, buckets: int) -> Work:
    def work(group: Sequence[PartRows]) -> PartResult:
        num_pairs = 0

        def counted() -> Iterator[pl.DataFrame]:
            nonlocal num_pairs
            for part in group:
                for captions in kept_captions(catalog, keep, part):
                    num_pairs += len(captions)
                    yield count_words(caption_words(captions))

        counts = merged(counted())
        by_bucket = shuffle.split(counts.to_arrow(), word_bucket(counts["word"], buckets).to_numpy(), buckets)
        return PartResult({"exchange": shuffle.pack(by_bucket)}, {"pairs": num_pairs})

    return work


def _sum_work(counts: Artifact, num_groups: int, min_count: int) -> Work:
    def work(bucket: int) -> PartResult:
        uris = [part_path(counts, group, "exchange") for group in range(num_groups)]
        summed = merged(pl.DataFrame(table) for table in shuffle.gather(uris, bucket))
        kept = summed.filter(pl.col("count") >= min_count).sort("count", "word", descending=[True, False])
        numbers = {
            "words": len(summed),
            "kept_words": len(kept),
            "occurrences": int(summed["count"].sum()),
            "kept_occurrences": int(kept["count"].sum()),
        }
        return PartResult({"parquet": to_parquet(kept.to_arrow())}, numbers)

    return work


def merged(counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The sum of any number of tables of words and counts, each once and sorted by word; of some million rows at a
    time, or as many as came out of it before."""
    waiting: list[pl.DataFrame] = []
    num_rows, most = 0, MERGE_ROWS
    for table in counts:
        waiting.append(table)
        num_rows += len(table)
        if num_rows > most:
            waiting = [merge_counts(waiting)]
            num_rows = len(waiting[0])
            most = max(MERGE_ROWS, 2 * num_rows)
    return merge_counts(waiting)


def read_words(words: Artifact) -> pl.DataFrame:
    """The kept words and their counts, of all buckets: for actors, never for the driver."""
    return pl.concat(read_bucket(words, index) for index in range(len(words.parts)))


def read_bucket(words: Artifact, index: int) -> pl.DataFrame:
    """The kept words and their counts of one bucket, most frequent first."""
    return pl.read_parquet(files.read(part_path(words, index, "parquet")))
