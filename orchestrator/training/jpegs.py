"""JPEG decoding in the training workers: nvJPEG on a GPU, libjpeg on a CPU, both through torchvision.

On a GPU it runs on a separate CUDA stream, in parallel with the steps. Pixels differ from those of the decoding tasks
(Pillow) by rounding, and on a GPU by how nvJPEG upsamples colours. Draft decoding is not used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_jpeg

from orchestrator.data.image_decode import BadImage, Crop, decode
from orchestrator.training.decoding import Rows, crop_of

# JPEG bytes that are decoded together
CHUNK_BYTES = 8 * 2**20


class JpegDecoder:
    """Decodes a rank's share of a batch on its device."""

    def __init__(self, image_size: int, max_pixels: int, device: torch.device) -> None:
        self.image_size, self.max_pixels, self.device = image_size, max_pixels, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, rows: Rows) -> tuple[Rows, torch.Tensor]:
        """Return the rows and their pixels, uint8 [n, 3, size, size] on the device, from the rows of `encoded_rows`.

        A damaged image gives zeros; its row is no longer `valid` and has a `problem`."""
        rows = {**rows, "valid": rows["valid"].copy(), "problem": rows["problem"].copy()}
        with torch.cuda.stream(self.stream):
            images = self._pixels(rows)
        if self.stream is not None:
            self.stream.synchronize()
            # the stream of the steps uses the memory, so it must not be reused before that stream is done
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
        for row, image in zip(jpegs, self._decoded([encoded[row] for row in jpegs]), strict=True):
            crop = crop_of(boxes[row])
            try:
                images[row] = (
                    self._resized(image, crop) if image is not None else self._decoded_by_pillow(encoded[row], crop)
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
            # one of them is damaged or not supported, and the error does not say which
            return [None] if len(jpegs) == 1 else [self._decoded([jpeg])[0] for jpeg in jpegs]

    def _resized(self, image: torch.Tensor, crop: Crop) -> torch.Tensor:
        left, top, width, height = (int(side) for side in (crop.left, crop.top, crop.width, crop.height))
        part = image[:, top : top + height, left : left + width].unsqueeze(0).float()
        pixels = F.interpolate(part, (self.image_size, self.image_size), mode="bicubic", antialias=True)[0]
        pixels = pixels.round_().clamp_(0, 255).to(torch.uint8)
        return pixels.flip(2) if crop.flip else pixels

    def _decoded_by_pillow(self, jpeg: bytes, crop: Crop) -> torch.Tensor:
        pixels = decode(jpeg, size=self.image_size, crop=lambda width, height: crop, max_pixels=self.max_pixels)
        return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)


def _chunks(rows: list[int], encoded: NDArray) -> Iterator[list[int]]:
    # decoded images take about ten times the bytes of their JPEGs, next to the model in the device's memory
    some: list[int] = []
    for row in rows:
        some.append(row)
        if sum(len(encoded[one]) for one in some) > CHUNK_BYTES:
            yield some
            some = []
    if some:
        yield some


def _tensor(data: bytes) -> torch.Tensor:
    # a copy, as torch warns about read-only memory; its cost is small compared with decoding
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
