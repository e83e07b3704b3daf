"""An external list of pairs: files of which each row has a key, a uid or a URL to match with the pool.

In Parquet that is a column. DataComp's `.npy` is an array of uids, each 128 bits in two numbers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from orchestrator.config import ConfigError, MatchBy
from orchestrator.errors import UserError
from orchestrator.source.columns import find, require, text_values
from orchestrator.source.record_fields import is_field, values_of
from orchestrator.source.row_groups import NUM_THREADS, DamagedParquet, cut, cut_shards, open_parquet, read_part
from orchestrator.source.schema import Part, Problems, Shard
from orchestrator.source.shards import digest, find_shards
from orchestrator.storage.npy import NpyRows, open_npy

PARQUET, NPY = ".parquet", ".npy"
ROWS_PER_PIECE = 1_000_000
UID_BYTES = 16
COLUMNS = {"key": ("key", "image_path"), "uid": ("uid", "sha256"), "url": ("url",)}
"""Names of the column, in upper or lower case, if the configuration sets none; clip-retrieval calls the key of a
WebDataset sample `image_path`."""


@dataclass(frozen=True)
class Piece:
    """A run of rows of one file, the unit of reading."""

    file: int
    part: Part


@dataclass(frozen=True)
class ExternalList:
    """The list's files in order, and what identifies a pair in them. Messages name the configuration node `setting`."""

    files: tuple[Shard, ...]
    match_by: MatchBy
    match_column: str | None
    setting: str

    @classmethod
    def find(
        cls, uri: str | Sequence[str] | None, *, match_by: MatchBy, match_column: str | None, setting: str
    ) -> ExternalList:
        """List the files. Errors: `ConfigError` if there are none, or for `.npy` files unless they match by uid."""
        files = tuple(find_shards(uri, endings=(PARQUET, NPY), setting=f"{setting}.uri"))
        if match_by != "uid" and any(_is_npy(file) for file in files):
            raise ConfigError(
                f"{setting}.match_by: got {match_by!r}, expected 'uid': an .npy file is a list of DataComp's uids"
            )
        return cls(files, match_by, match_column, setting)

    def identity(self) -> dict[str, Any]:
        """Return what identifies the list, for fingerprints."""
        return {
            "match_by": self.match_by,
            "match_column": self.match_column,
            "num_files": len(self.files),
            "files": digest(self.files),
        }

    def pieces(self) -> list[Piece]:
        """Return the list in pieces, in order, from the headers of the files.

        Errors: `ConfigError` for a file without the column; `UserError` for a damaged file, or an `.npy` file of
        anything but uids."""
        numbers = {file.uri: number for number, file in enumerate(self.files)}
        parts = cut_shards([file for file in self.files if not _is_npy(file)], ROWS_PER_PIECE, self._check)
        if damaged := [part.shard.uri for part in parts if part.num_rows is None]:
            raise UserError(f"{self.setting}.uri: {damaged[0]} is not readable as Parquet; download it again")
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for pieces in pool.map(self._npy_parts, filter(_is_npy, self.files)):
                parts += pieces
        found = [Piece(numbers[part.shard.uri], part) for part in parts]
        return sorted(found, key=lambda piece: (piece.file, piece.part.first_row))

    def num_rows(self) -> int:
        """Return the rows of all files, from their headers. Errors: as `pieces`."""
        return sum(piece.part.num_rows or 0 for piece in self.pieces())

    def values(self, piece: Piece) -> pl.Series:
        """Return the values to match by, String [rows]; null for a row without one.

        Errors: `UserError` for a damaged file; `OSError` from reading."""
        part = piece.part
        if _is_npy(part.shard):
            assert part.num_rows is not None
            return _uid_texts(open_npy(part.shard.uri).read(part.first_row, part.num_rows))
        try:
            with open_parquet(part.shard.uri) as file:
                column = self._column(part.shard, file.schema_arrow)
                values = values_of(read_part(file, part, [column]), column)
        except DamagedParquet as error:
            raise UserError(f"{part.shard.uri} is not readable as Parquet: {error}") from None
        return pl.Series(text_values(values, f"{self.setting}: {part.shard.name}: column {column}", Problems()))

    def _check(self, shard: Shard, schema: pa.Schema) -> None:
        self._column(shard, schema)

    def _column(self, shard: Shard, schema: pa.Schema) -> str:
        names = schema.names
        if self.match_column is not None and is_field(schema, self.match_column):
            return self.match_column
        wanted = COLUMNS[self.match_by] if self.match_column is None else (self.match_column,)
        column = find(names, wanted)
        if column is None:
            raise ConfigError(
                f"{self.setting}.match_column: {shard.name} has no column {' or '.join(map(repr, wanted))}; "
                f"its columns: {', '.join(names)}"
            )
        require(shard, names, column, f"{self.setting}.match_column")
        return column

    def _npy_parts(self, shard: Shard) -> list[Part]:
        array = open_npy(shard.uri)
        _check_uids(array)
        if shard.num_bytes < array.num_bytes:
            raise UserError(
                f"{shard.uri}: got {shard.num_bytes:,} bytes, expected {array.num_bytes:,}; download it again"
            )
        ranges = cut([array.num_rows], ROWS_PER_PIECE)
        return [Part(index=0, shard=shard, first_row=first, num_rows=num_rows) for first, num_rows in ranges]


def _is_npy(shard: Shard) -> bool:
    return shard.name.lower().endswith(NPY)


def _check_uids(array: NpyRows) -> None:
    fields = [array.dtype[name] for name in array.dtype.names or ()]
    if len(array.shape) != 1 or fields != [np.dtype("u8")] * 2:
        raise UserError(
            f"{array.uri}: got {array.dtype} {array.shape}, expected DataComp's uids: one dimension of two u8 fields"
        )


def _uid_texts(uids: np.ndarray) -> pl.Series:
    # the high half first: the bytes of big-endian numbers are in the order of the hexadecimal digits
    halves = np.stack([uids[name] for name in uids.dtype.names or ()], axis=1).astype(">u8")
    digits = halves.tobytes().hex().encode()
    ends = np.arange(len(uids) + 1, dtype=np.int64) * 2 * UID_BYTES
    texts = pa.LargeStringArray.from_buffers(len(uids), pa.py_buffer(ends), pa.py_buffer(digits))
    return pl.Series(texts)
