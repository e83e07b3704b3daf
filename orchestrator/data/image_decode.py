"""Decodes images to uint8 pixels of the model's size, cropped as open_clip does, without torch.

Training: the distribution of torchvision's RandomResizedCrop. Each draw is a function of (seed, epoch, ordinal of the
pair) through the counter-based generator Philox, so restarts and the number of workers do not change it. Evaluation:
the shorter side is resized to `size` and the centre cropped (open_clip's `shortest`), or the whole image is squashed to
a square (`squash`). As in open_clip: bicubic resizing (bilinear for models that were trained with it),
`convert("RGB")`, no EXIF rotation. Unlike open_clip, the conversion to RGB comes first, because a palette cannot be
interpolated, and 16-bit greys are scaled to 8 bits instead of clipped to white."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

# the formats of the web; some of Pillow's other plugins run external programs on the bytes
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
NUM_TRIES = 10
DRAFT_SCALES = (8, 4, 2)
DRAFT_MARGIN = 2
"""A draft has at least this many times the wanted pixels along each side: the bicubic filter then still averages, and
removes the high frequencies that the decoder's coarser averaging of blocks got wrong."""
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
"""What Pillow's plugins raise for damaged bytes. The bytes are in memory, so an `OSError` is no failed read."""


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
"""Chooses the box for an image of the given (width, height)."""
Interpolation = Literal["bicubic", "bilinear"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class ImageDecoder:
    """Decodes, crops and scales images to `size` x `size` for a model (`clip.preprocessing.ImageInput`).

    Images with more than `max_pixels` are refused."""

    size: int
    crop_fraction: float
    resize_mode: str
    max_pixels: int
    interpolation: Interpolation = "bicubic"

    def cropper(self) -> Cropper:
        """Return the function that chooses the box, which is then scaled to `size` x `size`."""
        if self.resize_mode == "squash":
            return partial(squash_crop, fraction=self.crop_fraction)
        return partial(evaluation_crop, size=self.size, fraction=self.crop_fraction)

    def decode(self, data: bytes) -> np.ndarray:
        """Return uint8 [size, size, 3], RGB. Errors: `BadImage`, as `decode`."""
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
) -> np.ndarray:
    """Return the pixels of an encoded image: uint8 [size, size, 3], RGB.

    `crop`: chooses the box, e.g. `partial(random_resized_crop, seed=...)`; None means `evaluation_crop`.
    `draft`: decode a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size; the box stays the same part
    of the image. Errors: `BadImage` for bytes that are no image, damaged or empty, and for more than `max_pixels`
    pixels, which the header shows before anything is decoded."""
    with _opened(data, max_pixels) as image:
        width, height = image.size
        box = crop(width, height) if crop else evaluation_crop(width, height, size=size)
        if draft:
            box = _draft(image, box, size)
        pixels = _resized(_rgb(image), box, size, _FILTERS[interpolation])
    return np.ascontiguousarray(pixels[:, ::-1]) if box.flip else pixels


def whole_image(data: bytes | None, *, max_pixels: int) -> Image.Image | None:
    """Return the whole image, RGB, at its own size; None if `decode` would raise `BadImage`."""
    try:
        with _opened(data or b"", max_pixels) as image:
            return _rgb(image)
    except BadImage:
        return None


def jpeg_box(data: bytes, *, crop: Cropper, max_pixels: int) -> Crop | None:
    """Return the box in a JPEG that every decoder can read (grey or RGB), from its header; None for other images.

    Errors: `BadImage`, as `decode`; damage after the header is not noticed."""
    with _opened(data, max_pixels) as image:
        if image.format != "JPEG" or image.mode not in ("L", "RGB"):
            return None
        return crop(*image.size)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    if not data:
        raise BadImage("empty", "no bytes")
    # Pillow's limit is one for the whole process: without it, `_check_size` applies the limit of this call
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            yield image
    except BadImage:
        raise
    except _UNDECODABLE as error:
        raise BadImage("undecodable", f"{type(error).__name__}: {error}") from error


def evaluation_crop(width: int, height: int, *, size: int, fraction: float = 1.0) -> Crop:
    """Return the box that becomes the centre `size` x `size` when the shorter side is resized to `size / fraction`.

    Rounds as torchvision's Resize and CenterCrop, so pixels differ only by rounding in Pillow."""
    side = int(size / fraction)
    resized = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    across, down = width / resized[0], height / resized[1]
    return Crop(left=left * across, top=top * down, width=size * across, height=size * down)


def squash_crop(width: int, height: int, *, fraction: float = 1.0) -> Crop:
    """Return the box that is squashed to a square: the whole image, or the middle `fraction` of each side (open_clip's
    `squash`)."""
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
    """Return the crop of a pair in an epoch: a uniform fraction of the area in `scale`, a log-uniform aspect in
    `ratio`, a uniform position. If ten boxes do not fit, it is the largest central box with an allowed aspect."""
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
    # the ordinal is the second word of the counter: each pair has 2**64 draws before those of the next pair start
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

    The decoder skips the high frequencies of each 8 x 8 block before the inverse transform, which saves most of the
    work. Other formats have no such scale and are decoded whole."""
    enough = DRAFT_MARGIN * size
    fitting = [scale for scale in DRAFT_SCALES if min(box.width, box.height) >= scale * enough]
    if not fitting or not image.draft(None, (image.width // fitting[0], image.height // fitting[0])):
        return box
    left, top, width, height = (side / fitting[0] for side in (box.left, box.top, box.width, box.height))
    return replace(box, left=left, top=top, width=width, height=height)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _resized(image: Image.Image, crop: Crop, size: int, resample: Image.Resampling) -> np.ndarray:
    right = min(crop.left + crop.width, image.width)
    bottom = min(crop.top + crop.height, image.height)
    resized = image.resize((size, size), resample, box=(crop.left, crop.top, right, bottom))
    return np.asarray(resized)
