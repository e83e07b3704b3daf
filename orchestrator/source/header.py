"""Image size from the first bytes of an encoded image.

`imagesize` parses the headers from a prefix; Pillow needs the whole file of a WebP image. The size is that of the
pixels that `data.image_decode` decodes: like open_clip it does not turn an image by its EXIF orientation, except a
TIFF, which Pillow turns by itself."""

from __future__ import annotations

import io

import imagesize

from orchestrator.data.image_decode import decoded_size

PREFIX = 8 << 10
LONG_PREFIX = 1 << 20
WHOLE = 256 << 20
"""In bytes. A JPEG may have hundreds of KiB of metadata (EXIF, colour profile, preview) before its size, in rare cases
megabytes; a TIFF may have its size at the end. More than `WHOLE` is not read."""
IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG = b"\xff\xd8"
_SIGNATURES = (_JPEG, b"\x89PNG", b"GIF8", b"BM", *_TIFF)


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels from a prefix of an image file; None if the prefix does not contain them, or
    if the image has a format that is not decoded."""
    if not is_image(data):
        return None
    width, height = imagesize.get(io.BytesIO(data), exif_rotation=data.startswith(_TIFF))
    if width > 0 and height > 0:
        return int(width), int(height)
    # Pillow reads what `imagesize` cannot, such as an AVIF with a rotation; for a JPEG only the prefix is too short
    return None if data.startswith(_JPEG) else decoded_size(data)


def is_image(data: bytes) -> bool:
    """Return whether the bytes begin like a file of a format that is decoded (`data.image_decode.FORMATS`)."""
    if data.startswith(_SIGNATURES):
        return True
    if data.startswith(b"RIFF"):
        return data[8:12] == b"WEBP"
    # the brands of a file of AVIF's family (HEIC too) are at its beginning
    return data[4:8] == b"ftyp" and any(brand in data[8:64] for brand in (b"avif", b"avis"))
