"""Decode an image to uint8 pixels of the model's size, with the crops of open_clip, without torch.

Training uses the distribution of torchvision's RandomResizedCrop. Each draw is a function of (seed, epoch, ordinal of
the pair) through the counter-based generator Philox, so it does not depend on restarts or on the number of workers.
Evaluation resizes the shorter side to `size` and takes the centre (open_clip's `shortest`), or takes the whole image
(`squash`). Like open_clip, it resizes with the bicubic filter (bilinear if an evaluated model needs it), converts to
RGB and ignores EXIF rotation. Unlike open_clip, it converts before it resizes, because a palette cannot be
interpolated, and it scales 16-bit greys to 8 bits instead of clipping them to white."""

from __future__ import annotations

import io
import math
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

# the formats of the web; some of Pillow's other plugins run external programs on the bytes
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# random boxes before the fallback, as in torchvision
NUM_TRIES = 10
# scales 1/n of the JPEG decoder, the smallest image first
DRAFT_SCALES = (8, 4, 2)
DRAFT_MARGIN = 2
"""A draft keeps at least this many times the needed pixels along each side. Then the bicubic filter still averages
pixels, which removes most errors of the decoder's coarser averaging."""
_UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""Errors of Pillow's plugins for damaged bytes. The bytes are in memory, so none of these errors is a failed read."""


class BadImage(ValueError):
    """An image that cannot be used; `reason` is one of `undecodable`, `too_large`, `empty`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A box in an image, in pixels of the image, and whether to mirror it."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


Cropper = Callable[[int, int], Crop]
"""Chooses the box from the (width, height) of the image."""
Resizer = Callable[[np.ndarray, Crop, int], np.ndarray]
"""Resizes the box of an image, uint8 [height, width, 3], to uint8 [size, size, 3]; it does not mirror."""
Interpolation = Literal["bicubic", "bilinear"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class ImageDecoder:
    """How images are cropped and resized to `size` x `size` for a model (`clip.preprocessing.ImageInput`).

    `max_pixels`: larger images are refused before they are decoded."""

    size: int
    crop_fraction: float
    resize_mode: str
    max_pixels: int
    interpolation: Interpolation = "bicubic"

    def cropper(self) -> Cropper:
        """Return the function that chooses the box to resize to `size` x `size`."""
        if self.resize_mode == "squash":
            return partial(squash_crop, fraction=self.crop_fraction)
        return partial(evaluation_crop, size=self.size, fraction=self.crop_fraction)

    def decode(self, data: bytes) -> np.ndarray:
        """Return the pixels, uint8 [size, size, 3], RGB. Errors: `BadImage`, as for `decode`."""
        return decode(
            data, size=self.size, crop=self.cropper(), max_pixels=self.max_pixels, interpolation=self.interpolation
        )


def decode(
    data: bytes,
    *,
    size: int,
    crop: Cropper | None = None,
    max_pixels: int,
    draft: bool = False,
    interpolation: Interpolation = "bicubic",
    resizer: Resizer | None = None,
) -> np.ndarray:
    """Return the pixels of an encoded image: uint8 [size, size, 3], RGB.

    `crop` chooses the box, e.g. `partial(random_resized_crop, seed=...)`; None means `evaluation_crop`. `draft`: decode
    a JPEG that is much larger than needed at 1/2, 1/4 or 1/8; the box covers the same part of the image. `resizer`
    takes the place of Pillow's resize.
    Errors: `BadImage` if the bytes are not an image, are damaged or empty, or if the image has more than `max_pixels`
    pixels (checked before decoding)."""
    with _opened(data, max_pixels) as image:
        width, height = image.size
        box = crop(width, height) if crop else evaluation_crop(width, height, size=size)
        if draft:
            box = _draft(image, box, size)
        rgb = _rgb(image)
        pixels = resizer(np.asarray(rgb), box, size) if resizer else _resized(rgb, box, size, _FILTERS[interpolation])
    return np.ascontiguousarray(pixels[:, ::-1]) if box.flip else pixels


def whole_image(data: bytes | None, *, max_pixels: int) -> Image.Image | None:
    """Return the image in its own size, RGB; None if `decode` would refuse it."""
    try:
        with _opened(data or b"", max_pixels) as image:
            return _rgb(image)
    except BadImage:
        return None


def decoded_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) of an image of any size, from its header; None if `decode` would refuse it."""
    try:
        with _opened(data, sys.maxsize) as image:
            return image.size
    except BadImage:
        return None


def jpeg_box(data: bytes, *, crop: Cropper, max_pixels: int) -> Crop | None:
    """Return the box of a JPEG that every decoder supports (grey or RGB), from its header; None for other images.

    Errors: `BadImage`, as for `decode`, except for damage after the header."""
    with _opened(data, max_pixels) as image:
        if image.format != "JPEG" or image.mode not in ("L", "RGB"):
            return None
        return crop(*image.size)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    if not data:
        raise BadImage("empty", "no bytes")
    # Pillow's own limit holds for the whole process, so it is off; `_check_size` applies the limit of this call
    Image.MAX_IMAGE_PIXELS = None
    buffer = io.BytesIO(data)
    try:
        with Image.open(buffer, formats=FORMATS) as image:
            _check_size(image, max_pixels)
            yield image
    except BadImage:
        raise
    except _UNDECODABLE as error:
        # Pillow names the buffer in memory where it would name a file
        reason = str(error).replace(repr(buffer), "").rstrip()
        raise BadImage("undecodable", f"{type(error).__name__}: {reason}") from error


def evaluation_crop(width: int, height: int, *, size: int, fraction: float = 1.0) -> Crop:
    """Return the box of the original image that is the centre `size` x `size` after the shorter side is resized to
    `size / fraction`.

    It rounds as torchvision's Resize and CenterCrop do, so the pixels differ only by rounding inside Pillow."""
    side = int(size / fraction)
    resized = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    across, down = width / resized[0], height / resized[1]
    return Crop(left=left * across, top=top * down, width=size * across, height=size * down)


def squash_crop(width: int, height: int, *, fraction: float = 1.0) -> Crop:
    """Return the box for a resize that ignores the aspect ratio (open_clip's `squash`): the whole image, or the middle
    `fraction` of each side."""
    across, down = width * fraction, height * fraction
    return Crop(left=(width - across) / 2, top=(height - down) / 2, width=across, height=down)


def random_resized_crop(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    horizontal_flip: bool = False,
    seed: int,
    epoch: int,
    ordinal: int,
) -> Crop:
    """Return the crop of a pair in an epoch, with the distribution of torchvision's RandomResizedCrop.

    The area is a fraction of the image, uniform in `scale`; the aspect ratio is log-uniform in `ratio`; the position is
    uniform. If ten boxes in a row do not fit, the result is the largest centred box with an allowed aspect ratio."""
    draws = _uniform(seed, epoch, ordinal, 4 * NUM_TRIES + 1)
    flip = bool(horizontal_flip and draws[-1] < 0.5)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, x, y in draws[:-1].reshape(NUM_TRIES, 4).tolist():
        target = width * height * (scale[0] + area * (scale[1] - scale[0]))
        shape = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return Crop(left=left, top=top, width=w, height=h, flip=flip)
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    return Crop(left=(width - w) // 2, top=(height - h) // 2, width=max(w, 1), height=max(h, 1), flip=flip)


def _uniform(seed: int, epoch: int, ordinal: int, num_draws: int) -> np.ndarray:
    # the ordinal is the second 64-bit word of Philox's counter, so each pair has 2**64 draws of its own
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, ordinal, 0, 0], dtype=np.uint64))
    return np.random.Generator(bits).random(num_draws)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage("empty", f"{width} x {height} pixels")
    if width * height > max_pixels:
        raise BadImage("too_large", f"{width} x {height} pixels, expected at most {max_pixels}")


def _draft(image: Image.Image, box: Crop, size: int) -> Crop:
    """Set the JPEG decoder to the smallest scale with enough pixels in the box; return the box at that scale.

    The decoder drops the high frequencies of each 8 x 8 block before the inverse transform, which saves most of the
    work. Other formats have no such scale and are decoded in full."""
    enough = DRAFT_MARGIN * size
    fitting = [scale for scale in DRAFT_SCALES if min(box.width, box.height) >= scale * enough]
    if not fitting or not image.draft(None, (image.width // fitting[0], image.height // fitting[0])):
        return box
    left, top, width, height = (side / fitting[0] for side in (box.left, box.top, box.width, box.height))
    return replace(box, left=left, top=top, width=width, height=height)


def _rgb(image: Image.Image) -> Image.Image:
    # Pillow clips 16-bit greys to 255, which turns most of such an image white
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _resized(image: Image.Image, crop: Crop, size: int, resample: Image.Resampling) -> np.ndarray:
    # a box may exceed the image by a rounding error, which `resize` refuses
    right = min(crop.left + crop.width, image.width)
    bottom = min(crop.top + crop.height, image.height)
    resized = image.resize((size, size), resample, box=(crop.left, crop.top, right, bottom))
    return np.asarray(resized)
