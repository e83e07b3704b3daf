"""NumPy's `.npy` format: arrays to and from bytes, and single rows of a file at any URI through range requests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UserError, first_line
from orchestrator.storage import files
from orchestrator.storage.ranges import MAX_REQUEST, read_spans

PREFIX = 4 << 10
"""Bytes read for the header. NumPy pads it to a multiple of 64; only a type with many fields exceeds 128."""

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def to_npy(array: NDArray) -> bytes:
    """Return the array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def from_npy(data: bytes) -> NDArray:
    """Return the array in the bytes of an .npy file. Errors: `ValueError` if the array needs pickle."""
    return np.load(io.BytesIO(data), allow_pickle=False)


@dataclass(frozen=True)
class NpyRows:
    """An array in a file. The first row begins at byte `offset`; rows are stored in C order, without gaps."""

    uri: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_rows(self) -> int:
        """The first dimension."""
        return self.shape[0]

    @property
    def num_bytes(self) -> int:
        """The size of the whole file."""
        return self.offset + self.num_rows * self._row_bytes

    def read(self, first: int, num_rows: int) -> NDArray:
        """Return `num_rows` rows, from row `first` on. Errors: `OSError`, also if the file has become shorter."""
        return self._read([(first, num_rows)], num_rows)

    def take(self, rows: NDArray[np.int64]) -> NDArray:
        """Return the given rows, [n, ...], in the given order; a row may occur several times. Errors: as `read`."""
        # each row is read once, and neighbours in one span; `position` restores the order and the repeats
        wanted, position = np.unique(rows, return_inverse=True)
        breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
        runs = [(int(run[0]), len(run)) for run in np.split(wanted, breaks) if len(run)]
        return self._read(runs, len(wanted))[position]

    @property
    def _row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def _read(self, runs: list[tuple[int, int]], num_rows: int) -> NDArray:
        out = np.empty((num_rows, *self.shape[1:]), self.dtype)
        target, position = out.reshape(-1).view(np.uint8), 0
        spans = [
            (self.offset + first * self._row_bytes, count * self._row_bytes)
            for run in runs
            for first, count in self._pieces(*run)
        ]
        for data in read_spans(self.uri, spans):
            target[position : position + len(data)] = np.frombuffer(data, np.uint8)
            position += len(data)
        return out

    def _pieces(self, first: int, num_rows: int) -> Iterator[tuple[int, int]]:
        # several requests are in flight at once, so each has a bounded size
        size = max(1, MAX_REQUEST // max(1, self._row_bytes))
        for start in range(first, first + num_rows, size):
            yield start, min(size, first + num_rows - start)


def open_npy(uri: str) -> NpyRows:
    """Return the array in a file. Only the header is read.

    Errors: `UserError` if the file is not an array of plain values in C order; `OSError` from reads."""
    with files.open_file(uri, read_ahead=PREFIX) as whole:
        file = io.BytesIO(whole.read(PREFIX))
    try:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise UserError(f"{uri}: got .npy format {version}, expected one of {sorted(HEADERS)}")
        shape, in_fortran_order, dtype = HEADERS[version](file)
    except ValueError as error:
        raise UserError(f"{uri} is not an .npy file: {first_line(error)}") from None
    if dtype.hasobject or not shape or (in_fortran_order and len(shape) > 1):
        order = "Fortran" if in_fortran_order else "C"
        raise UserError(f"{uri}: got {dtype} {shape} in {order} order, expected rows of plain values in C order")
    return NpyRows(uri, dtype, shape, file.tell())
