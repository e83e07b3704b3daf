"""How a model takes its images: their size and crop, read without loading the weights, and normalised pixels.

`preprocess_cfg` gives what `model.load` would give as `Clip.preprocess_cfg`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import open_clip
import torch
from open_clip.model import CLIPVisionCfg
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from orchestrator.clip import architecture
from orchestrator.clip.model import CONFIG_FILE, HUB_SCHEME, LOCAL_SCHEME, PREPROCESS_KEYS, config_of
from orchestrator.errors import one_line

ResizeMode = Literal["shortest", "squash"]


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The images a model takes: `size` x `size` pixels.

    `shortest` takes the centre: a square whose side is `crop_fraction` of the shorter side. `squash` takes the whole
    image and does not keep its aspect ratio."""

    size: int
    crop_fraction: float
    resize_mode: ResizeMode


def image_input(name: str, size: int | Sequence[int], mode: str, *, crop_fraction: float = 1.0) -> ImageInput:
    """Return the image input of model `name` from open_clip's or timm's settings; size in pixels.

    Errors: `ValueError` for images that are not square, or another resize mode."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width or mode not in ("shortest", "squash"):
        raise ValueError(
            f"{name} takes images of {height} x {width} pixels, resized by {mode!r}: "
            "only square images, resized by 'shortest' or 'squash', are supported"
        )
    return ImageInput(size=width, crop_fraction=crop_fraction, resize_mode=cast(ResizeMode, mode))


def preprocess_cfg(reference: str, *, pretrained: str | None) -> dict[str, Any]:
    """Return a model's `preprocess_cfg` without its weights; for a hub reference, only the config is downloaded.

    `reference`: an open_clip name (with a tag or a checkpoint file as `pretrained`), or a `local-dir:` or `hf-hub:`
    reference. Errors: `ValueError`, one line, for a reference that does not exist."""
    if reference.startswith((LOCAL_SCHEME, HUB_SCHEME)):
        path = _hub_config(reference) if reference.startswith(HUB_SCHEME) else config_of(reference)
        return of_saved(reference, json.loads(path.read_text(encoding="utf-8")))
    model_cfg = architecture.resolve(name=reference, config=None, image_size=None, context_length=None)
    is_tag = pretrained is not None and not Path(pretrained).is_file()
    own = open_clip.get_pretrained_cfg(architecture.builtin_name(reference), pretrained) if is_tag else {}
    return _merged(model_cfg, own)


def of_saved(reference: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `preprocess_cfg` of a saved folder's config. Errors: `ValueError` for another kind of config."""
    if "model_cfg" not in config:
        raise ValueError(f"{reference}: expected model_cfg in its {CONFIG_FILE}")
    return _merged(config["model_cfg"], config.get("preprocess_cfg") or {})


def _merged(model_cfg: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    # the order of open_clip.create_model: defaults, then the pretrained model's settings, then the tower's image size
    merged = merge_preprocess_dict(PreprocessCfg(), dict(own))
    merged["size"] = model_cfg["vision_cfg"].get("image_size", CLIPVisionCfg.image_size)
    return {key: tuple(merged[key]) if isinstance(merged[key], list) else merged[key] for key in PREPROCESS_KEYS}


def _hub_config(reference: str) -> Path:
    try:
        return Path(download_pretrained_from_hf(reference.removeprefix(HUB_SCHEME), filename=CONFIG_FILE))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot load {reference}: {one_line(error)}") from error


class Normaliser:
    """(x / 255 - mean) / std per channel, on one device: what open_clip's transform does after cropping."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 [b, 3, h, w] on the device, channels last in memory, from uint8 of that shape on any device.

        Fastest for the layout of image decoders, [b, h, w, 3] permuted: nothing has to move in memory."""
        assert images.dtype == torch.uint8, f"images are {images.dtype}, expected torch.uint8"
        on_device = images.to(self.mean.device, non_blocking=True)
        pixels = on_device.to(dtype=torch.float32, memory_format=torch.channels_last)
        return pixels.div_(255).sub_(self.mean).div_(self.std)
