"""Pixels as the model wants them: images travel as uint8 and become normalised floats on the device."""

from __future__ import annotations

import torch


class Normaliser:
    """(x / 255 - mean) / std per channel, on one device: what open_clip's transform does after cropping."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [b, 3, h, w] on the device, channels last in memory, from uint8 of the same shape anywhere.

        Fastest from what a decoder writes, [b, h, w, 3] permuted: then nothing is moved."""
        assert images.dtype == torch.uint8, f"images are {images.dtype}, expected torch.uint8"
        on_device = images.to(self.mean.device, non_blocking=True)
        pixels = on_device.to(dtype=torch.float32, memory_format=torch.channels_last)
        return pixels.div_(255).sub_(self.mean).div_(self.std)
