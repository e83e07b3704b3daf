"""Files of precomputed embeddings: folders of clip-retrieval, or columns of Parquet files.

Both list their rows as an external list and read the vectors of wanted rows, if possible without the rest of the
file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.config import ClipRetrievalEmbedding, ColumnEmbedding, ConfigError, PrecomputedConfig
from orchestrator.config.embedding import Tower
from orchestrator.data.external_list import PARQUET, ExternalList
from orchestrator.errors import UserError
from orchestrator.source.columns import require
from orchestrator.source.row_groups import NUM_THREADS, DamagedParquet, open_parquet
from orchestrator.source.schema import Shard
from orchestrator.source.shards import digest, find_shards
from orchestrator.storage import files
from orchestrator.storage.npy import open_npy

FOLDERS: dict[Tower, tuple[str, str]] = {"image": ("img_emb", "img_emb"), "text": ("text_emb", "text_emb")}
CHUNK_ROWS = 16_384
BUFFER = 1 << 20
# a row group of vectors may have gigabytes
COLUMN_BUFFER = 8 << 20
Values = NDArray[np.floating]


class PrecomputedVectors(Protocol):
    """Vectors in files that others made. Implementations are small picklable values."""

    @property
    def external_list(self) -> ExternalList:
        """The rows of the files, for the join with the pool."""

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers that the files have vectors of."""

    @property
    def in_groups(self) -> bool:
        """Whether reading a row means reading those before it in its row group."""

    def identity(self) -> dict[str, Any]:
        """What identifies the vectors, besides the rows: part of the fingerprint."""

    def dims(self) -> dict[Tower, int]:
        """The length of the vectors of each tower. Errors: `UserError` for files that do not fit together."""

    def vectors(self, tower: Tower, dim: int, file: int, rows: NDArray[np.int64]) -> Iterator[Values]:
        """The vectors of some rows of a file (ascending), float [n, dim] in chunks, in that order; NaN if missing.

        Errors: `UserError` for a damaged file or a vector of another length; `OSError` from reading."""


def open_precomputed(settings: PrecomputedConfig, name: str) -> PrecomputedVectors:
    """The files that the settings of an embedding name. Errors: `ConfigError`, one line, for missing files."""
    if isinstance(settings, ClipRetrievalEmbedding):
        return ClipRetrieval.open(settings, f"embedding.{name}")
    return Columns.open(settings, f"embedding.{name}")


@dataclass(frozen=True)
class ClipRetrieval:
    """`img_emb/img_emb_N.npy` and `text_emb/text_emb_N.npy`, one or both, with the rows of
    `metadata/metadata_N.parquet`."""

    external_list: ExternalList
    arrays: Mapping[Tower, tuple[Shard, ...]]

    @classmethod
    def open(cls, settings: ClipRetrievalEmbedding, setting: str) -> ClipRetrieval:
        """Lists the folders. Errors: `ConfigError` for metadata without vectors, or vectors without metadata."""
        if settings.uri is None:
            raise ConfigError(f"{setting}.uri is not set; expected a folder with metadata/ and img_emb/")
        metadata = _numbered(settings.uri, "metadata", "metadata", PARQUET, setting)
        arrays = {
            tower: _numbered(settings.uri, folder, stem, ".npy", setting)
            for tower, (folder, stem) in FOLDERS.items()
            if files.exists(files.join(files.absolute(settings.uri), folder))
        }
        if not arrays:
            raise ConfigError(f"{setting}.uri: {settings.uri} has neither img_emb/ nor text_emb/")
        for found in arrays.values():
            if lone := sorted(found.keys() ^ metadata.keys()):
                there = found.get(lone[0]) or metadata[lone[0]]
                raise ConfigError(f"{setting}.uri: {there.uri} has no counterpart of number {lone[0]}")
        listed = ExternalList(tuple(metadata.values()), settings.match_by, settings.match_column, setting)
        return cls(listed, {tower: tuple(found[number] for number in metadata) for tower, found in arrays.items()})

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers with a folder."""
        return tuple(self.arrays)

    @property
    def in_groups(self) -> bool:
        """False: arrays have no row groups."""
        return False

    def identity(self) -> dict[str, Any]:
        """A digest of the URIs, sizes and versions of the arrays."""
        return {tower: digest(shards) for tower, shards in self.arrays.items()}

    def dims(self) -> dict[Tower, int]:
        """From the headers of the arrays, after a check against the number of rows of the metadata."""
        rows = [0] * len(self.external_list.files)
        for piece in self.external_list.pieces():
            rows[piece.file] += piece.part.num_rows or 0
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return {
                tower: _one_dim(shards, list(pool.map(_array_dim, shards, rows)))
                for tower, shards in self.arrays.items()
            }

    def vectors(self, tower: Tower, dim: int, file: int, rows: NDArray[np.int64]) -> Iterator[Values]:
        """By range reads from the array."""
        array = open_npy(self.arrays[tower][file].uri)
        assert array.shape[1:] == (dim,), f"{array.uri} changed since it was listed"
        for start in range(0, len(rows), CHUNK_ROWS):
            yield array.take(rows[start : start + CHUNK_ROWS])


@dataclass(frozen=True)
class Columns:
    """Columns of Parquet files with lists of numbers."""

    external_list: ExternalList
    columns: Mapping[Tower, str]

    @classmethod
    def open(cls, settings: ColumnEmbedding, setting: str) -> Columns:
        """Lists the files. Errors: `ConfigError` if there are none, or no column is named."""
        named: dict[Tower, str | None] = {"image": settings.image_column, "text": settings.text_column}
        columns = {tower: column for tower, column in named.items() if column is not None}
        if not columns:
            raise ConfigError(f"{setting}: expected image_column, text_column or both, got neither")
        shards = find_shards(settings.uri, endings=(PARQUET,), setting=f"{setting}.uri")
        return cls(ExternalList(tuple(shards), settings.match_by, settings.match_column, setting), columns)

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers with a column."""
        return tuple(self.columns)

    @property
    def in_groups(self) -> bool:
        """True: Parquet files have row groups."""
        return True

    def identity(self) -> dict[str, Any]:
        """The names of the columns."""
        return {str(tower): column for tower, column in self.columns.items()}

    def dims(self) -> dict[Tower, int]:
        """From the schemas of the files or, for lists of variable length, from the first vector."""
        shards = self.external_list.files
        return {tower: _one_dim(shards, self._lengths(tower, column)) for tower, column in self.columns.items()}

    def vectors(self, tower: Tower, dim: int, file: int, rows: NDArray[np.int64]) -> Iterator[Values]:
        """Batch by batch from the row groups with wanted rows, each up to its last wanted row."""
        uri, column, first = self.external_list.files[file].uri, self.columns[tower], 0
        try:
            with open_parquet(uri, buffer_size=COLUMN_BUFFER) as parquet:
                for group in range(parquet.num_row_groups):
                    num_rows = parquet.metadata.row_group(group).num_rows
                    low, high = np.searchsorted(rows, [first, first + num_rows])
                    if low < high:
                        for lists in _of_group(parquet, group, column, rows[low:high] - first):
                            yield _to_matrix(lists, dim, f"{uri}: column {column!r}")
                    first += num_rows
        except DamagedParquet as error:
            raise UserError(f"{uri} is not readable as Parquet: {error}") from None

    def _lengths(self, tower: Tower, column: str) -> list[int | None]:
        shards = self.external_list.files
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            lengths = list(pool.map(partial(self._fixed_length, tower, column), shards))
        for number, file in enumerate(shards):
            if any(lengths):
                break
            lengths[number] = _first_length(file, column)
        return lengths

    def _fixed_length(self, tower: Tower, column: str, shard: Shard) -> int | None:
        setting = f"{self.external_list.setting}.{tower}_column"
        try:
            with open_parquet(shard.uri) as parquet:
                schema = parquet.schema_arrow
        except DamagedParquet as error:
            raise UserError(f"{shard.uri} is not readable as Parquet: {error}") from None
        require(shard, schema.names, column, setting)
        kind = schema.field(column).type
        if not _is_list(kind) or not pa.types.is_floating(kind.value_type):
            raise ConfigError(
                f"{setting}: column {column!r} of {shard.name} is {kind}; expected lists of floating-point numbers"
            )
        return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None


def _numbered(uri: str, folder: str, stem: str, ending: str, setting: str) -> dict[int, Shard]:
    found = find_shards(files.join(uri, folder), endings=(ending,), setting=f"{setting}.uri")
    by_number: dict[int, Shard] = {}
    for shard in found:
        named = re.fullmatch(rf"{stem}_(\d+){re.escape(ending)}", shard.name)
        if named is None:
            raise ConfigError(f"{setting}.uri: got {shard.uri}, expected names like {stem}_0{ending}")
        by_number[int(named[1])] = shard
    return dict(sorted(by_number.items()))


def _array_dim(shard: Shard, num_rows: int) -> int:
    array = open_npy(shard.uri)
    if len(array.shape) != 2 or array.dtype.kind != "f":
        raise UserError(f"{shard.uri}: got {array.dtype} {array.shape}, expected floating-point numbers [rows, dim]")
    if array.num_rows != num_rows:
        raise UserError(f"{shard.uri}: got {array.num_rows:,} vectors, expected one for each of {num_rows:,} rows")
    if shard.num_bytes < array.num_bytes:
        raise UserError(f"{shard.uri}: got {shard.num_bytes:,} bytes, expected {array.num_bytes:,}; download it again")
    return array.shape[1]


def _one_dim(shards: Sequence[Shard], dims: Sequence[int | None]) -> int:
    known = [(dim, file) for dim, file in zip(dims, shards, strict=True) if dim is not None]
    if not known:
        raise UserError(f"{shards[0].uri} and all other files have no vectors")
    first, file = known[0]
    other = next(((dim, its) for dim, its in known if dim != first), None)
    if other is not None:
        raise UserError(f"{other[1].uri}: got vectors of {other[0]} numbers, expected {first} as in {file.name}")
    return first


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _first_length(shard: Shard, column: str) -> int | None:
    # page by page: a whole row group of vectors may not fit into memory
    with (
        files.open_file(shard.uri, read_ahead=BUFFER) as file,
        pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as parquet,
    ):
        for batch in parquet.iter_batches(batch_size=1, columns=[column]):
            if batch.column(0).null_count == 0:
                return len(batch.column(0)[0])
    return None


def _of_group(parquet: pq.ParquetFile, group: int, column: str, rows: NDArray[np.int64]) -> Iterator[pa.Array]:
    start = 0
    for batch in parquet.iter_batches(batch_size=CHUNK_ROWS, row_groups=[group], columns=[column]):
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        if low < high:
            yield batch.column(0).take(pa.array(rows[low:high] - start))
        if high == len(rows):
            return
        start += batch.num_rows


def _to_matrix(lists: pa.Array, dim: int, name: str) -> Values:
    lengths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    wrong = next((length for length in lengths if length != dim), None)
    if wrong is not None:
        raise UserError(f"{name} has vectors of {wrong} numbers, expected {dim} as in the first vector")
    matrix = np.full((len(lists), dim), np.nan, np.float32)
    numbers = pc.list_flatten(lists).cast(pa.float32()).to_numpy(zero_copy_only=False)
    matrix[lists.is_valid().to_numpy(zero_copy_only=False)] = numbers.reshape(-1, dim)
    return matrix
