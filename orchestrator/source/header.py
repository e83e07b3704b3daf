"""Read the width and height of an image from the first bytes of its file, without decoding it.

`imagesize` parses the headers of JPEG, PNG and WebP from a prefix; Pillow needs the whole file of a WebP image."""

from __future__ import annotations

import io

import imagesize

PREFIX = 8 << 10
LONG_PREFIX = 1 << 20
"""In bytes. A JPEG may have hundreds of KiB of metadata (EXIF, colour profile, preview) before its size."""


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels from a prefix of an image file; None if the prefix does not contain them."""
    width, height = imagesize.get(io.BytesIO(data))
    return (int(width), int(height)) if width > 0 and height > 0 else None
