"""Which CLIP to build: an open_clip name or a custom configuration, resolved to a complete open_clip `model_cfg`.

It is checked before anything is allocated: a misspelt key or name gives an error of one line."""

from __future__ import annotations

import difflib
from copy import deepcopy
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import open_clip
import timm
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

REQUIRED_KEYS = ("embed_dim", "vision_cfg", "text_cfg")
OPTIONAL_KEYS = (
    "custom_text",
    "quick_gelu",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
    "multimodal_cfg",
)


def resolve(
    *, name: str | None, config: dict[str, Any] | None, image_size: int | None, context_length: int | None
) -> dict[str, Any]:
    """Return the complete open_clip `model_cfg` of a built-in name or of `config`, with the two overrides applied.

    Errors: `ValueError` for neither or both, an unknown name (with close matches), a missing or unknown key, or a model
    that needs a package that is not installed."""
    if (name is None) == (config is None):
        raise ValueError(f"got model name {name!r} and config {config!r}: give exactly one of the two")
    if name is not None:
        model_cfg = open_clip.get_model_config(builtin_name(name))
    else:
        model_cfg = deepcopy(config) or {}
        check_config(model_cfg)
    model_cfg["vision_cfg"].setdefault("image_size", CLIPVisionCfg.image_size)
    text_cfg = model_cfg["text_cfg"]
    text_cfg.setdefault("context_length", CLIPTextCfg.context_length)
    if (text_cfg.get("hf_model_name") or text_cfg.get("hf_tokenizer_name")) and find_spec("transformers") is None:
        raise ValueError(
            f"model {name or 'config'} has a Hugging Face text tower or tokenizer: pip install transformers"
        )
    if image_size is not None:
        model_cfg["vision_cfg"]["image_size"] = image_size
    if context_length is not None:
        text_cfg["context_length"] = context_length
    return model_cfg


def builtin_name(name: str) -> str:
    """Return open_clip's spelling of a built-in name (`ViT-B/32` is `ViT-B-32`).

    Errors: `ValueError` with the closest valid names."""
    spelled = name.replace("/", "-")
    valid_names = open_clip.list_models()
    if spelled not in valid_names:
        raise ValueError(
            f"unknown model {name!r}: {closest(spelled, valid_names)}; "
            "or a folder, 'local-dir:FOLDER' or 'hf-hub:ORGANISATION/NAME'"
        )
    return spelled


def check_config(config: dict[str, Any]) -> None:
    """Check the keys of a `model_cfg`. Errors: `ValueError` for a missing or unknown key, or an unknown timm tower."""
    for key in REQUIRED_KEYS:
        if key not in config:
            raise ValueError(f"model config has no {key!r}: it needs {', '.join(REQUIRED_KEYS)}")
    for key in ("vision_cfg", "text_cfg"):
        if not isinstance(config[key], dict):
            raise ValueError(f"model config: {key} is {config[key]!r}, expected a group of settings")
    _check_keys("model config", config, [*REQUIRED_KEYS, *OPTIONAL_KEYS])
    _check_keys("vision_cfg", config["vision_cfg"], [field.name for field in fields(CLIPVisionCfg)])
    _check_keys("text_cfg", config["text_cfg"], [field.name for field in fields(CLIPTextCfg)])
    tower = config["vision_cfg"].get("timm_model_name")
    # timm itself looks up a name with a scheme ("hf-hub:...")
    if tower is not None and ":" not in tower and not timm.is_model(tower):
        raise ValueError(f"vision_cfg.timm_model_name: unknown model {tower!r}: {closest(tower, timm.list_models())}")


def _check_keys(where: str, got: dict[str, Any], valid_keys: list[str]) -> None:
    for key in got:
        if key not in valid_keys:
            raise ValueError(f"{where}: unknown key {key!r}: {closest(key, valid_keys)}")


def closest(word: str, valid_words: list[str]) -> str:
    """Return a hint for an unknown word: the valid words that look like it, or all valid words."""
    lower_case = {valid.lower(): valid for valid in valid_words}
    matches = difflib.get_close_matches(word.lower(), lower_case, n=5, cutoff=0.6)
    if matches:
        return f"did you mean {', '.join(lower_case[match] for match in matches)}"
    return f"valid are {', '.join(valid_words)}"
