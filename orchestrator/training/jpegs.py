"""JPEG decoding in the training workers: nvJPEG on a GPU, libjpeg on a CPU, both through torchvision.

On a GPU it runs in the loader's thread, on the loader's stream (`device_loader.py`), in parallel with the steps. Pixels
differ from those of the decoding tasks (Pillow) by rounding, and on a GPU by how nvJPEG upsamples colours. Draft
decoding is not used.

Order of streams: torchvision decodes on a CUDA stream of its own, which nothing outside it can reach. It lets the
caller's stream wait for the decoded images, but its own stream does not wait for the caller's. The images' memory comes
from the caller's stream, and the allocator gives it out again as soon as an image is dropped, even if kernels that read
it are still queued there. nvJPEG would then write over an image that is still being resized. So the loader's stream is
synchronised before each decode. Only the loader's thread waits, and torchvision's decoder waits for its stream anyway.

torchvision 0.29 deprecates its decoders in favour of TorchCodec (from 0.16), which has the same call. We keep
torchvision's as long as it is there: every version that we support has it, and TorchCodec is a further dependency that
gives the same pixels. If torchvision has no decoder any more, TorchCodec's is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from orchestrator.data.image_decode import BadImage, Crop, decode
from orchestrator.training.decoding import Rows, crop_of

try:
    from torchvision.io import decode_jpeg
except ImportError:
    from torchcodec.decoders import decode_jpeg

# JPEG bytes that are decoded together
CHUNK_BYTES = 8 * 2**20
# values of the images that are resized together on a GPU: 64 MB as float32, and as much again for the weights
MAX_VALUES = 2**24
# of the bicubic filter, as in Pillow
SHARPNESS = -0.5


class JpegDecoder:
    """Decodes a rank's share of a batch on its device, on the current stream."""

    def __init__(self, image_size: int, max_pixels: int, device: torch.device) -> None:
        self.image_size, self.max_pixels, self.device = image_size, max_pixels, device

    def __call__(self, rows: Rows, encoded: NDArray, boxes: NDArray) -> tuple[Rows, torch.Tensor]:
        """Return the rows and their pixels, uint8 [n, 3, size, size] on the device, channels last.

        `encoded`: n times bytes; `boxes`: int64 [n, 5] (both as in `encoded_rows`). A damaged image gives zeros; its
        row is no longer `valid` and has a `problem`."""
        rows = {**rows, "valid": rows["valid"].copy(), "problem": rows["problem"].copy()}
        size = self.image_size
        images = torch.zeros(len(boxes), size, size, 3, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        ready = [row for row in range(len(boxes)) if not boxes[row, 2] and encoded[row]]
        if ready:
            pixels = torch.stack([_tensor(encoded[row]).view(size, size, 3) for row in ready])
            images[torch.tensor(ready, device=self.device)] = pixels.permute(0, 3, 1, 2).to(self.device)
        for some in _chunks(np.flatnonzero(boxes[:, 2]).tolist(), encoded):
            self._fill(images, rows, some, encoded, boxes)
        return rows, images

    def _fill(self, images: torch.Tensor, rows: Rows, jpegs: list[int], encoded: NDArray, boxes: NDArray) -> None:
        decoded: dict[int, torch.Tensor] = {}
        for row, image in zip(jpegs, self._decoded([_tensor(encoded[row]) for row in jpegs]), strict=True):
            if image is not None:
                decoded[row] = image
                continue
            try:
                images[row] = self._decoded_by_pillow(encoded[row], crop_of(boxes[row]))
            except BadImage as error:
                rows["valid"][row], rows["problem"][row] = False, str(error)
        if self.device.type == "cpu":
            for row, image in decoded.items():
                images[row] = resized(image, crop_of(boxes[row]), self.image_size)
            return
        for some in _of_equal_size(decoded):
            pixels = resized_together(torch.stack([decoded.pop(row) for row in some]), boxes[some], self.image_size)
            images[torch.tensor(some, device=self.device)] = pixels

    def _decoded(self, jpegs: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """Return the decoded images, None for those that are damaged or not supported.

        The decoder refuses all for the sake of one and does not say which, so halves are tried: a few bad ones among n
        take some log2(n) more calls each."""
        if not jpegs:
            return []
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        try:
            return decode_jpeg(jpegs, mode="RGB", device=self.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            half = len(jpegs) // 2
            return [*self._decoded(jpegs[:half]), *self._decoded(jpegs[half:])] if half else [None]

    def _decoded_by_pillow(self, jpeg: bytes, crop: Crop) -> torch.Tensor:
        pixels = decode(jpeg, size=self.image_size, crop=lambda width, height: crop, max_pixels=self.max_pixels)
        return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)


def resized(image: torch.Tensor, crop: Crop, size: int) -> torch.Tensor:
    """Return uint8 [3, size, size]: the box of an image, uint8 [3, height, width], by the bicubic filter."""
    left, top, width, height = (int(side) for side in (crop.left, crop.top, crop.width, crop.height))
    part = image[:, top : top + height, left : left + width].unsqueeze(0).float()
    pixels = F.interpolate(part, (size, size), mode="bicubic", antialias=True)[0].round_().clamp_(0, 255)
    return pixels.to(torch.uint8).flip(2) if crop.flip else pixels.to(torch.uint8)


def resized_together(images: torch.Tensor, boxes: NDArray, size: int) -> torch.Tensor:
    """Return uint8 [n, 3, size, size]: the boxes, int64 [n, 5], of images of one size, uint8 [n, 3, height, width].

    The same filter as `resized`, up to the rounding of sums. A pixel of the result is a weighted sum of the pixels of a
    column and a row, so all n resizes are two batched matrix products, where n calls would keep the CPU busy."""
    height, width = images.shape[2:]
    left, top, across, down, flip = torch.from_numpy(boxes).to(images.device).unbind(1)
    rows = _weights(top, down, height, size)
    columns = _weights(left, across, width, size)
    columns = torch.where(flip.bool()[:, None, None], columns.flip(1), columns)
    pixels = rows[:, None] @ (images.float() @ columns.mT[:, None])
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _weights(start: torch.Tensor, length: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """Return float32 [n, size, side]: the weight of each pixel along a side, for the pixels of a resized stretch of it.

    start, length: int64 [n], the stretches."""
    scale = (length.double() / size)[:, None, None]
    pixel = torch.arange(side, device=start.device) - start[:, None]
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    distance = (pixel[:, None] + 0.5 - centre).abs() / scale.clamp(min=1)
    near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
    far = SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
    inside = ((pixel >= 0) & (pixel < length[:, None]))[:, None]
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0)) * inside
    return (weights / weights.sum(2, keepdim=True)).float()


def _of_equal_size(images: dict[int, torch.Tensor]) -> Iterator[list[int]]:
    # the rows of images of one size, few enough to fit into the device's memory
    by_size: dict[Sequence[int], list[int]] = {}
    for row, image in images.items():
        by_size.setdefault(tuple(image.shape), []).append(row)
    for shape, rows in by_size.items():
        most = max(1, MAX_VALUES // int(np.prod(shape)))
        for start in range(0, len(rows), most):
            yield rows[start : start + most]


def _chunks(rows: list[int], encoded: NDArray) -> Iterator[list[int]]:
    # decoded images take about ten times the bytes of their JPEGs, next to the model in the device's memory
    some: list[int] = []
    num_bytes = 0
    for row in rows:
        some.append(row)
        num_bytes += len(encoded[row])
        if num_bytes > CHUNK_BYTES:
            yield some
            some, num_bytes = [], 0
    if some:
        yield some


def _tensor(data: bytes) -> torch.Tensor:
    # a copy, as torch warns about read-only memory; its cost is small compared with decoding
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
