"""Width and height of an image from the first bytes of its file, without decoding.

`imagesize` parses the headers of JPEG, PNG and WebP from a prefix; Pillow opens no WebP before it has it all."""

from __future__ import annotations

import io

import imagesize

PREFIX = 8 << 10
LONG_PREFIX = 1 << 20
"""A JPEG may carry metadata (EXIF, colour profile, preview) of some hundred KiB before its size."""


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels from a prefix of an image file; `None` if it shows none."""
    width, height = imagesize.get(io.BytesIO(data))
    return (int(width), int(height)) if width > 0 and height > 0 else None
