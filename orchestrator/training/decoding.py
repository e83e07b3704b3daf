"""Decoding tasks: turn the pairs of a block into rows of a batch.

With `decode_in` tasks the images are cropped and decoded here; with `decode_in` workers the rows have JPEGs and their
crop boxes, and the training workers decode them (`jpegs.py`). In both cases bad samples are found here, except for
damage that only decoding finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.config import AugmentationConfig
from orchestrator.data.image_decode import BadImage, Crop, Cropper, decode, jpeg_box, random_resized_crop

NO_CAPTION = "no caption"
# pixels that are decoded together, about
DECODED_BYTES = 16 * 2**20
Rows = dict[str, NDArray]
Pair = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a phase's images become pixels, and where; each decoding task gets a copy."""

    image_size: int
    augmentation: AugmentationConfig
    seed: int
    decode_in: Literal["tasks", "workers"]
    draft_decoding: bool
    max_image_pixels: int

    @property
    def batch_rows(self) -> int:
        """Pairs that are decoded together, about `DECODED_BYTES` of pixels."""
        return max(32, DECODED_BYTES // (3 * self.image_size**2))


def decode_block(block: pa.Table, *, decoding: Decoding) -> Iterator[Rows]:
    """Yield the pairs in the form that the training workers take, in order."""
    rows_of = encoded_rows if decoding.decode_in == "workers" else decoded_rows
    for start in range(0, block.num_rows, decoding.batch_rows):
        yield rows_of(block.slice(start, decoding.batch_rows), decoding)


def decoded_rows(block: pa.Table, decoding: Decoding) -> Rows:
    """Return the rows with `image` uint8 [n, size, size, 3]; zeros where a pair is not valid."""
    images = np.zeros((block.num_rows, decoding.image_size, decoding.image_size, 3), np.uint8)

    def take(row: int, pair: Pair) -> None:
        images[row] = _pixels(decoding, pair)

    return {"image": images, **_rows(block, take)}


def encoded_rows(block: pa.Table, decoding: Decoding) -> Rows:
    """Return the rows with `encoded`, bytes, and `box` int64 [n, 5]: left, top, width, height, mirrored.

    A width of 0 means that the bytes are decoded pixels, uint8 [size, size, 3]: formats other than JPEG, and JPEGs with
    four colours, are decoded here. A pair that is not valid has no bytes."""
    encoded = np.full(block.num_rows, b"", object)
    boxes = np.zeros((block.num_rows, 5), np.int64)

    def take(row: int, pair: Pair) -> None:
        box = jpeg_box(_bytes(pair), crop=_crop(decoding, pair), max_pixels=decoding.max_image_pixels)
        if box is None:
            encoded[row] = _pixels(decoding, pair).tobytes()
        else:
            encoded[row] = pair["image"]
            boxes[row] = (box.left, box.top, box.width, box.height, box.flip)

    return {"encoded": encoded, "box": boxes, **_rows(block, take)}


def crop_of(box: NDArray) -> Crop:
    """Return the crop in a row of `box`."""
    left, top, width, height, flip = box.tolist()
    return Crop(left=left, top=top, width=width, height=height, flip=bool(flip))


def _rows(block: pa.Table, take: Callable[[int, Pair], None]) -> Rows:
    problems = np.full(block.num_rows, "", object)
    for row, pair in enumerate(block.to_pylist()):
        if not (pair["caption"] or "").strip():
            problems[row] = NO_CAPTION
            continue
        try:
            take(row, pair)
        except BadImage as error:
            problems[row] = str(error)
    return {
        "caption": np.array([caption or "" for caption in block["caption"].to_pylist()], object),
        "key": block["key"].to_numpy(zero_copy_only=False),
        "valid": problems == "",
        "problem": problems,
        "epoch": block["epoch"].to_numpy(),
        "ordinal": block["ordinal"].to_numpy(),
    }


def _bytes(pair: Pair) -> bytes:
    if pair["image"] is None:
        raise BadImage("empty", "no image")
    return pair["image"]


def _crop(decoding: Decoding, pair: Pair) -> Cropper:
    augmentation = decoding.augmentation
    return partial(
        random_resized_crop,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        horizontal_flip=augmentation.horizontal_flip,
        seed=decoding.seed,
        epoch=pair["epoch"],
        ordinal=pair["ordinal"],
    )


def _pixels(decoding: Decoding, pair: Pair) -> NDArray[np.uint8]:
    return decode(
        _bytes(pair),
        size=decoding.image_size,
        crop=_crop(decoding, pair),
        max_pixels=decoding.max_image_pixels,
        draft=decoding.draft_decoding,
    )
