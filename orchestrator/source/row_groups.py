"""Read Parquet files by row range: split a file at its row groups, and read a range without the rest of the file."""

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
# in bytes, read with the file's end; Arrow then reads whole column chunks by itself
FOOTER = 64 << 10


class DamagedParquet(Exception):
    """The bytes were read but are not a complete Parquet file."""


@contextmanager
def open_parquet(uri: str, *, buffer_size: int = 0) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file at any URI. Column chunks are read whole, or in steps of `buffer_size` bytes if it is set.

    Errors: `DamagedParquet`, here or in the body of the `with`; `OSError` if the read fails."""
    options = {"buffer_size": buffer_size, "pre_buffer": not buffer_size}
    try:
        with open_file(uri, read_ahead=buffer_size or FOOTER) as file, pq.ParquetFile(file, **options) as parquet:
            yield parquet
    except (pa.ArrowInvalid, CutOff) as error:
        raise DamagedParquet(str(error)) from error
    except OSError as error:
        # Arrow reports corrupt metadata and pages as a plain OSError without errno; a failed read has an errno
        if type(error) is not OSError or error.errno is not None:
            raise
        raise DamagedParquet(str(error)) from error


def cut(group_rows: Sequence[int], part_rows: int) -> list[tuple[int, int]]:
    """Split a file into ranges (first row, number of rows) of at most `part_rows` rows.

    Consecutive row groups share a range if they fit; a row group larger than `part_rows` is split by itself."""
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
    """Split Parquet shards into parts, from their footers. A shard with a damaged footer is one part of unknown size.

    `check(shard, schema)` may raise an error about a shard's columns. Errors: `CutOff` if the network cuts a read off.
    Such a shard is not treated as damaged, because that would change the numbers of all parts after it."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        ranges = pool.map(lambda shard: _ranges(shard, part_rows, check), shards)
        pairs = [(shard, piece) for shard, pieces in zip(shards, ranges, strict=True) for piece in pieces]
    return [
        Part(index=i, shard=shard, first_row=first, num_rows=num_rows)
        for i, (shard, (first, num_rows)) in enumerate(pairs)
    ]


def groups_of(file: pq.ParquetFile, part: Part) -> Iterator[tuple[int, int, int]]:
    """Yield the row groups of a part: (index, first row within the group, number of rows)."""
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
    """Read the given columns of a part's rows, in row order."""
    pieces = [
        file.read_row_group(index, columns=list(columns)).slice(start, length)
        for index, start, length in groups_of(file, part)
    ]
    return pa.concat_tables(pieces)


def chunk_bytes(file: pq.ParquetFile, part: Part, columns: Collection[str]) -> list[int]:
    """Return the compressed bytes of the given columns in each row group of a part; row groups are read whole."""

    # the path of a nested column's chunk begins with the column's name and a dot
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
