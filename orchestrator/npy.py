"""NumPy's own file format, to and from bytes."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray


def to_npy(array: NDArray) -> bytes:
    """The array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def from_npy(data: bytes) -> NDArray:
    """The array in the bytes of an .npy file. Errors: `ValueError` for one that needs pickle."""
    return np.load(io.BytesIO(data), allow_pickle=False)
