"""Parquet by ranges of rows: a file is cut at row groups, and a range is read without the rest of the file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.source.schema import Part, Shard
from orchestrator.storage.files import open_file
from orchestrator.storage.retry import CutOff

NUM_THREADS = 16
# Arrow asks for whole column chunks by itself
FOOTER = 64 << 10


class DamagedParquet(Exception):
    """The bytes were read, but are not (all of) a Parquet file."""


@contextmanager
def open_parquet(uri: str, *, buffer_size: int = 0) -> Iterator[pq.ParquetFile]:
    """A Parquet file at any URI; a column chunk is read whole, or by `buffer_size` bytes as its rows are asked for.

    Errors: `DamagedParquet`, here or in the body; `OSError` from reading."""
    options = {"buffer_size": buffer_size, "pre_buffer": not buffer_size}
    try:
        with open_file(uri, read_ahead=buffer_size or FOOTER) as file, pq.ParquetFile(file, **options) as parquet:
            yield parquet
    except (pa.ArrowInvalid, CutOff) as error:
        raise DamagedParquet(str(error)) from error
    except OSError as error:
        # Arrow reports undecodable thrift and pages as a plain OSError without a number; a failed read has one
        if type(error) is not OSError or error.errno is not None:
            raise
        raise DamagedParquet(str(error)) from error


def cut(group_rows: Sequence[int], part_rows: int) -> list[tuple[int, int]]:
    """Ranges (first row, number of rows) of at most `part_rows` rows that cover a file: whole row groups together
    while they fit, a row group that is larger by itself in pieces."""
    ranges: list[tuple[int, int]] = []
    first = 0
    for num_rows in group_rows:
        if ranges and ranges[-1][1] + num_rows <= part_rows:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + num_rows)
        else:
            ranges += [(first + i, min(part_rows, num_rows - i)) for i in range(0, num_rows, part_rows)]
        first += num_rows
    return ranges


def cut_shards(shards: Sequence[Shard], part_rows: int, check: Callable[[Shard, pa.Schema], None]) -> list[Part]:
    """The parts of Parquet shards, from their footers; a shard whose footer is damaged is one part of unknown size.

    `check(shard, schema)` may raise what is wrong with a shard's columns. Errors: `CutOff` for a shard that the network
    cuts off: taken for damaged, it would number the parts after it in another way than the catalog has them."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        ranges = pool.map(lambda shard: _ranges(shard, part_rows, check), shards)
        pairs = [(shard, piece) for shard, pieces in zip(shards, ranges, strict=True) for piece in pieces]
    return [
        Part(index=i, shard=shard, first_row=first, num_rows=num_rows)
        for i, (shard, (first, num_rows)) in enumerate(pairs)
    ]


def groups_of(file: pq.ParquetFile, part: Part) -> Iterator[tuple[int, int, int]]:
    """The row groups that hold a part: (index, first row within the group, number of rows)."""
    assert part.num_rows is not None
    first = 0
    for index in range(file.num_row_groups):
        num_rows = file.metadata.row_group(index).num_rows
        low = max(part.first_row, first)
        high = min(part.first_row + part.num_rows, first + num_rows)
        if low < high:
            yield index, low - first, high - low
        first += num_rows


def read_part(file: pq.ParquetFile, part: Part, columns: Sequence[str]) -> pa.Table:
    """The given columns of a part's rows, in row order."""
    pieces = [
        file.read_row_group(index, columns=list(columns)).slice(start, length)
        for index, start, length in groups_of(file, part)
    ]
    return pa.concat_tables(pieces)


def chunk_bytes(file: pq.ParquetFile, part: Part, columns: Collection[str]) -> list[int]:
    """The compressed bytes of the given columns in each row group that holds rows of a part: a group is read whole."""

    # a nested column has several chunks
    wanted = tuple(f"{name}." for name in columns)

    def of_group(index: int) -> int:
        group = file.metadata.row_group(index)
        chunks = (group.column(place) for place in range(group.num_columns))
        return sum(chunk.total_compressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(wanted))

    return [of_group(index) for index, _, _ in groups_of(file, part)]


def _ranges(
    shard: Shard, part_rows: int, check: Callable[[Shard, pa.Schema], None]
) -> Sequence[tuple[int, int | None]]:
    try:
        with open_parquet(shard.uri) as file:
            check(shard, file.schema_arrow)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except DamagedParquet as error:
        if isinstance(error.__cause__, CutOff):
            raise error.__cause__ from None
        return [(0, None)]
    return cut(sizes, part_rows)
