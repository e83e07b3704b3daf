"""JPEGs decoded where they are trained on: nvJPEG on a GPU, libjpeg on a CPU, both through torchvision.

On a GPU it happens on a CUDA stream of its own, beside the steps. Pixels differ from the reading tasks' (Pillow) by
rounding, and on a GPU by how nvJPEG widens the colours; nothing is drafted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_jpeg

from orchestrator.data.image_decode import BadImage, Crop, decode
from orchestrator.training.decoding import Rows, crop_of

CHUNK_BYTES = 8 * 2**20


class JpegDecoder:
    """Makes the pixels of a rank's share on its device."""

    def __init__(self, image_size: int, max_pixels: int, device: torch.device) -> None:
        self.image_size, self.max_pixels, self.device = image_size, max_pixels, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, rows: Rows) -> tuple[Rows, torch.Tensor]:
        """The rows, and their pixels, uint8 [n, 3, size, size] on the device; `rows` are as `handed_over` gives them.

        What turns out damaged is no longer `valid`, with its `problem`, and zeros."""
        rows = {**rows, "valid": rows["valid"].copy(), "problem": rows["problem"].copy()}
        with torch.cuda.stream(self.stream):
            images = self._pixels(rows)
        if self.stream is not None:
            self.stream.synchronize()
            # they are used, and given back, by the stream of the steps
            images.record_stream(torch.cuda.default_stream(self.device))
        return rows, images

    def _pixels(self, rows: Rows) -> torch.Tensor:
        size, boxes, encoded = self.image_size, rows["box"], rows["encoded"]
        images = torch.zeros(len(boxes), size, size, 3, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        ready = [row for row in range(len(boxes)) if not boxes[row, 2] and encoded[row]]
        for row in ready:
            images[row] = _tensor(encoded[row]).view(size, size, 3).permute(2, 0, 1).to(self.device)
        for some in _chunks(np.flatnonzero(boxes[:, 2]).tolist(), encoded):
            self._fill(images, rows, some)
        return images

    def _fill(self, images: torch.Tensor, rows: Rows, jpegs: list[int]) -> None:
        boxes, encoded = rows["box"], rows["encoded"]
        for row, picture in zip(jpegs, self._decoded([encoded[row] for row in jpegs]), strict=True):
            crop = crop_of(boxes[row])
            try:
                images[row] = (
                    self._resized(picture, crop) if picture is not None else self._by_pillow(encoded[row], crop)
                )
            except BadImage as error:
                rows["valid"][row], rows["problem"][row] = False, str(error)

    def _decoded(self, jpegs: list[bytes]) -> list[torch.Tensor | None]:
        if not jpegs:
            return []
        try:
            return decode_jpeg([_tensor(jpeg) for jpeg in jpegs], mode=ImageReadMode.RGB, device=self.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # one of them is damaged or beyond this decoder, and it does not say which
            return [None] if len(jpegs) == 1 else [self._decoded([jpeg])[0] for jpeg in jpegs]

    def _resized(self, picture: torch.Tensor, crop: Crop) -> torch.Tensor:
        left, top, width, height = (int(side) for side in (crop.left, crop.top, crop.width, crop.height))
        part = picture[:, top : top + height, left : left + width].unsqueeze(0).float()
        pixels = F.interpolate(part, (self.image_size, self.image_size), mode="bicubic", antialias=True)[0]
        pixels = pixels.round_().clamp_(0, 255).to(torch.uint8)
        return pixels.flip(2) if crop.flip else pixels

    def _by_pillow(self, jpeg: bytes, crop: Crop) -> torch.Tensor:
        pixels = decode(jpeg, size=self.image_size, crop=lambda width, height: crop, max_pixels=self.max_pixels)
        return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)


def _chunks(rows: list[int], encoded: NDArray) -> Iterator[list[int]]:
    # whole pictures are some ten times their JPEGs, and lie beside the model
    some: list[int] = []
    for row in rows:
        some.append(row)
        if sum(len(encoded[one]) for one in some) > CHUNK_BYTES:
            yield some
            some = []
    if some:
        yield some


def _tensor(data: bytes) -> torch.Tensor:
    # torch warns of memory that cannot be written to; a copy is small beside decoding
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
