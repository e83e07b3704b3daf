"""How a model takes its pictures, told without its weights: what `model.load` would give it as `preprocess_cfg`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import open_clip
from open_clip.model import CLIPVisionCfg
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from orchestrator.clip import architecture
from orchestrator.clip.model import CONFIG_FILE, HUB_SCHEME, LOCAL_SCHEME, PREPROCESS_KEYS, config_of, one_line

ResizeMode = Literal["shortest", "squash"]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures a model takes: `size` x `size` pixels. `shortest`: the centre, of `crop_fraction` of the shorter
    side; `squash`: the whole picture, its aspect given up."""

    size: int
    crop_fraction: float
    resize_mode: ResizeMode


def pictures_of(name: str, size: int | Sequence[int], mode: str, *, crop_fraction: float = 1.0) -> Pictures:
    """What open_clip and timm say of pictures, size in pixels. Errors: `ValueError`, which names the model, for
    pictures that are not square or any other way to resize."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width or mode not in ("shortest", "squash"):
        raise ValueError(
            f"{name} takes pictures of {height} x {width} pixels, resized by {mode!r}: "
            "only squares, resized by 'shortest' or 'squash', can be had"
        )
    return Pictures(size=width, crop_fraction=crop_fraction, resize_mode=cast(ResizeMode, mode))


def preprocess_cfg(reference: str, *, pretrained: str | None) -> dict[str, Any]:
    """As `model.load` gives it for an open_clip name with a tag or a checkpoint file, or for a `local-dir:` or
    `hf-hub:` reference, of which the config alone is fetched.

    Errors: `ValueError`, one line, for what is not there."""
    if reference.startswith((LOCAL_SCHEME, HUB_SCHEME)):
        path = _hub_config(reference) if reference.startswith(HUB_SCHEME) else config_of(reference)
        return of_saved(reference, json.loads(path.read_text(encoding="utf-8")))
    model_cfg = architecture.resolve(name=reference, config=None, image_size=None, context_length=None)
    is_tag = pretrained is not None and not Path(pretrained).is_file()
    own = open_clip.get_pretrained_cfg(architecture.builtin_name(reference), pretrained) if is_tag else {}
    return _merged(model_cfg, own)


def of_saved(reference: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """As `model.load` gives it for a folder with such a config. Errors: `ValueError` for one of another kind."""
    if "model_cfg" not in config:
        raise ValueError(f"{reference}: expected model_cfg in its {CONFIG_FILE}")
    return _merged(config["model_cfg"], config.get("preprocess_cfg") or {})


def _merged(model_cfg: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    # as open_clip.create_model: what is said of the pretrained model over the defaults, and the tower's own size
    merged = merge_preprocess_dict(PreprocessCfg(), dict(own))
    merged["size"] = model_cfg["vision_cfg"].get("image_size", CLIPVisionCfg.image_size)
    return {key: tuple(merged[key]) if isinstance(merged[key], list) else merged[key] for key in PREPROCESS_KEYS}


def _hub_config(reference: str) -> Path:
    try:
        return Path(download_pretrained_from_hf(reference.removeprefix(HUB_SCHEME), filename=CONFIG_FILE))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot load {reference}: {one_line(error)}") from error
