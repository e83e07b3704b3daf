"""The checkpoint file: what `TrainStep.state` returns and what the caller adds, plain data and tensors.

A file is written whole or not at all. torch.load does not verify the checksums of its archive, so the file ends with
another one after the archive, where torch ignores it: MARK, then the xxHash (XXH3, 128 bits) of all bytes before
MARK."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

MARK = b"xxh3-128"
TRAILER_BYTES = len(MARK) + xxhash.xxh3_128().digest_size
CHUNK_BYTES = 16 * 2**20


def save(saved: dict[str, Any], path: Path) -> None:
    """Write the file whole or not at all: under a temporary name, which is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial_path.open("wb+") as file:
            torch.save(saved, file)
            size = file.seek(0, os.SEEK_END)
            digest = _digest(file, size)
            file.write(MARK + digest)
            file.flush()
            os.fsync(file.fileno())
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a file that `save` wrote, with tensors on the CPU.

    Errors: `ValueError`, one line with the path, for a file that is cut off or changed; `OSError` if it is missing."""
    with path.open("rb") as file:
        size = max(0, file.seek(0, os.SEEK_END) - TRAILER_BYTES)
        digest = _digest(file, size)
        if file.read() != MARK + digest:
            raise ValueError(f"checkpoint {path} is damaged: its content does not match its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def _digest(file: BinaryIO, size: int) -> bytes:
    """Return the hash of the first `size` bytes and leave the file position after them."""
    file.seek(0)
    digest = xxhash.xxh3_128()
    while (left := size - file.tell()) > 0:
        digest.update(file.read(min(CHUNK_BYTES, left)))
    return digest.digest()
