"""Decoding tasks: turn the pairs of a block into rows of a batch, with tokens in place of captions.

With `decode_in` tasks the images are cropped and decoded here; with `decode_in` workers the rows have JPEGs and their
crop boxes, and the training workers decode them (`jpegs.py`). In both cases bad samples are found here, except for
damage that only decoding finds.

A block is an Arrow table. Pixels and tokens are columns of lists of one length, so a block's pixels lie in memory as a
batch holds them: a training worker copies them once, in one piece (`device_loader.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.clip.tokens import Captions
from orchestrator.config import AugmentationConfig
from orchestrator.data.image_decode import BadImage, Crop, Cropper, decode, jpeg_box, random_resized_crop

NO_CAPTION = "no caption"
MIN_BLOCK_BYTES = 16 * 2**20
Rows = dict[str, NDArray]
Pair = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a phase's pairs become pixels and tokens, and where; each process of decoding tasks gets it once."""

    image_size: int
    augmentation: AugmentationConfig
    seed: int
    decode_in: Literal["tasks", "workers"]
    draft_decoding: bool
    max_image_pixels: int
    captions: Captions
    resize_with: Literal["pillow", "torch"] = "pillow"
    block_bytes: int = MIN_BLOCK_BYTES

    @property
    def block_rows(self) -> int:
        """Pairs of a block: enough for `block_bytes` of decoded pixels, or a few more."""
        return max(32, -(-self.block_bytes // (3 * self.image_size**2)))


def decode_block(block: pa.Table, *, decoding: Decoding) -> Iterator[pa.Table]:
    """Yield the pairs as `decoded_rows` or `encoded_rows` returns them, in order, `block_rows` at a time."""
    rows_of = encoded_rows if decoding.decode_in == "workers" else decoded_rows
    for start in range(0, block.num_rows, decoding.block_rows):
        yield rows_of(block.slice(start, decoding.block_rows), decoding)


def decoded_rows(block: pa.Table, decoding: Decoding) -> pa.Table:
    """Return the rows with `image`, a list of size * size * 3 uint8; zeros where a pair is not valid.

    Other columns: `tokens`, a list of int32 of the model's context length; `key`, `valid`, `problem` (empty if valid),
    `epoch` and `ordinal` (of the pair in the pool)."""
    images = np.zeros((block.num_rows, decoding.image_size, decoding.image_size, 3), np.uint8)

    def take(row: int, pair: Pair) -> None:
        images[row] = _pixels(decoding, pair)

    return _table(block, decoding, take, image=images)


def encoded_rows(block: pa.Table, decoding: Decoding) -> pa.Table:
    """Return the rows with `encoded`, bytes, and `box`, a list of five int64: left, top, width, height, mirrored.

    A width of 0 means that the bytes are decoded pixels, uint8 [size, size, 3]: formats other than JPEG, and JPEGs with
    four colours, are decoded here. A pair that is not valid has no bytes. Other columns: as in `decoded_rows`."""
    encoded = np.full(block.num_rows, b"", object)
    boxes = np.zeros((block.num_rows, 5), np.int64)

    def take(row: int, pair: Pair) -> None:
        box = jpeg_box(_bytes(pair), crop=_crop(decoding, pair), max_pixels=decoding.max_image_pixels)
        if box is None:
            encoded[row] = _pixels(decoding, pair).tobytes()
        else:
            encoded[row] = pair["image"]
            boxes[row] = (box.left, box.top, box.width, box.height, box.flip)

    return _table(block, decoding, take, encoded=encoded, box=boxes)


def lists_of(values: NDArray) -> pa.FixedSizeListArray:
    """Return an array [n, ...] as an Arrow column of n lists, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(values.shape[1:])))


def array_of(lists: pa.FixedSizeListArray) -> NDArray:
    """Return a column of n lists of one length as an array [n, length], without a copy."""
    return lists.flatten().to_numpy(zero_copy_only=True).reshape(-1, lists.type.list_size)


def crop_of(box: NDArray) -> Crop:
    """Return the crop in a row of `box`."""
    left, top, width, height, flip = box.tolist()
    return Crop(left=left, top=top, width=width, height=height, flip=bool(flip))


def _table(block: pa.Table, decoding: Decoding, take: Callable[[int, Pair], None], **columns: NDArray) -> pa.Table:
    captions = [caption or "" for caption in block["caption"].to_pylist()]
    problems = np.full(block.num_rows, "", object)
    # one image at a time: a list of them would be another copy of the block
    pairs = zip(*(block[name] for name in ("image", "epoch", "ordinal")), strict=True)
    for row, (caption, pair) in enumerate(zip(captions, pairs, strict=True)):
        if not caption.strip():
            problems[row] = NO_CAPTION
            continue
        image, epoch, ordinal = (value.as_py() for value in pair)
        try:
            take(row, {"image": image, "epoch": epoch, "ordinal": ordinal})
        except BadImage as error:
            problems[row] = str(error)
    # after `take` has filled them
    arrays = {name: pa.array(of, pa.large_binary()) if of.ndim == 1 else lists_of(of) for name, of in columns.items()}
    return pa.table(
        {
            **arrays,
            "tokens": lists_of(decoding.captions(captions)),
            "key": block["key"],
            "valid": problems == "",
            "problem": pa.array(problems, pa.string()),
            "epoch": block["epoch"],
            "ordinal": block["ordinal"],
        }
    )


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
        resizer=torch_resize if decoding.resize_with == "torch" else None,
    )


def torch_resize(image: NDArray[np.uint8], box: Crop, size: int) -> NDArray[np.uint8]:
    """Return the box of an image, uint8 [height, width, 3], resized to uint8 [size, size, 3] by torch's bicubic filter.

    torch has Pillow's filter with vector instructions: it is several times faster, and a few pixels in a hundred differ
    by 1 of 255. At the edges more differ: Pillow's filter sees the pixels around the box, this one the box alone, like
    torchvision's crops. Boxes are of whole pixels, as crops are unless a draft has scaled them."""
    # only tasks that use it load torch
    import torch
    import torch.nn.functional as F

    # tasks share the cores, so a task has one thread
    torch.set_num_threads(1)
    left, top = round(box.left), round(box.top)
    part = image[top : max(top + 1, round(box.top + box.height)), left : max(left + 1, round(box.left + box.width))]
    # a copy of the part, as torch warns about read-only memory
    pixels = torch.from_numpy(part.copy()).permute(2, 0, 1).unsqueeze(0)
    found = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)[0]
    return found.permute(1, 2, 0).contiguous().numpy()
