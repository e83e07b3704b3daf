"""Split a name of several files: `A.tar::B.tar`, the separator of WebDataset and open_clip.

fsspec uses the same mark for chained URLs (`simplecache::s3://bucket/A.tar`), and a folder may have it in its name."""

from __future__ import annotations

import os

from fsspec import available_protocols

SEPARATOR = "::"
CHAINED = ("zip://", "tar://", "libarchive://", "dir://", "filecache://", "blockcache://", "simplecache://")
"""How a part of a chained URL begins, if it is not a protocol's name alone."""


def split_uri(uri: str) -> list[str]:
    """Return the URIs that `::` joins; the URI itself if it is a path that exists or one of fsspec's chained URLs."""
    pieces = uri.split(SEPARATOR)
    if len(pieces) == 1 or any(_is_chained(piece) for piece in pieces) or _is_path(uri):
        return [uri]
    return [piece for piece in pieces if piece]


def _is_chained(piece: str) -> bool:
    return piece in available_protocols() or piece.startswith(CHAINED)


def _is_path(uri: str) -> bool:
    # the rest of the path, below the folder with the mark in its name, may be a pattern
    before, _, after = uri.rpartition(SEPARATOR)
    folder = before + SEPARATOR + after.partition("/")[0]
    return "://" not in uri and os.path.exists(os.path.expanduser(folder))
