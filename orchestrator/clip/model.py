"""A CLIP model with its configuration and tokenizer: built, saved and loaded through open_clip's factory.

A saved folder has `open_clip_config.json`, `open_clip_model.safetensors`, and the tokenizer's files if there are any.
open_clip loads it without changes: `open_clip.create_model_and_transforms('local-dir:FOLDER')`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import open_clip
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.tokenizer import HFTokenizer
from safetensors import SafetensorError
from safetensors.torch import save_file

from orchestrator.clip import architecture
from orchestrator.clip.recipe import LossName
from orchestrator.errors import one_line

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
LOCAL_SCHEME, HUB_SCHEME = "local-dir:", "hf-hub:"
Model: TypeAlias = "CLIP | CustomTextCLIP"
Tokenizer = Callable[[list[str]], torch.Tensor]
# the errors of torch, safetensors and open_clip for a file that is cut off or belongs to another model
UNREADABLE = (RuntimeError, AssertionError, EOFError, LookupError, UnpicklingError, SafetensorError)
# the initial values of open_clip_train's --siglip
SIGLIP_START = {"init_logit_scale": math.log(10), "init_logit_bias": -10}
PREPROCESS_KEYS = ("mean", "std", "size", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Clip:
    """A model (on the CPU when built or loaded), its complete open_clip `model_cfg`, its preprocessing and tokenizer.

    `preprocess_cfg`: mean and std per channel for pixels in [0, 1], size in pixels, interpolation, resize mode.
    `tokenizer`: list of strings to int64 [n, context]."""

    model: Model
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer: Tokenizer

    @property
    def image_size(self) -> int:
        """The side of its square images, in pixels."""
        return side(self.preprocess_cfg["size"])


def side(size: int | Sequence[int]) -> int:
    """Return the side of a square image from a size in open_clip's form, one number or two."""
    return size if isinstance(size, int) else size[0]


def build(
    *,
    name: str | None,
    config: dict[str, Any] | None,
    pretrained: str | None,
    image_size: int | None,
    context_length: int | None,
    seed: int,
    loss: LossName = "clip",
) -> Clip:
    """Return a model to train, from an open_clip name or a custom config.

    `pretrained` is an open_clip tag or a checkpoint file; without it the weights are a function of `seed` only, and
    the global random state does not change. For the loss `siglip`, the logit scale and bias start at SigLIP's values
    unless the config sets them. Errors: `ValueError` with the valid values."""
    with _seeded(seed):
        if name is not None and name.startswith((LOCAL_SCHEME, HUB_SCHEME)):
            return _from_reference(name, pretrained, image_size=image_size, context_length=context_length)
        model_cfg = architecture.resolve(name=name, config=config, image_size=image_size, context_length=context_length)
        if loss == "siglip":
            model_cfg = {**SIGLIP_START, **model_cfg}
        return _from_config(model_cfg, name and architecture.builtin_name(name), pretrained)


def check(
    *,
    name: str | None,
    config: dict[str, Any] | None,
    pretrained: str | None,
    image_size: int | None,
    context_length: int | None,
) -> None:
    """Check the arguments of `build` without building or downloading. Errors: `ValueError` with the valid values."""
    if name is not None and name.startswith((LOCAL_SCHEME, HUB_SCHEME)):
        if name.startswith(LOCAL_SCHEME):
            config_of(name)
        return
    architecture.resolve(name=name, config=config, image_size=image_size, context_length=context_length)
    if pretrained and not Path(pretrained).is_file():
        _check_tag(name and architecture.builtin_name(name), pretrained)


def load(reference: str, *, pretrained: str | None = None) -> Clip:
    """Return a trained model.

    `reference` is a folder that `save` wrote, a `local-dir:` or `hf-hub:` reference of open_clip, or an open_clip name
    with a pretrained tag or a checkpoint file (also open_clip_train's `.pt`) as `pretrained`.

    Errors: `ValueError`, one line, for weights that are missing or do not fit."""
    path = Path(reference)
    if path.is_dir():
        return _from_reference(f"{LOCAL_SCHEME}{path}", pretrained)
    if reference.startswith((LOCAL_SCHEME, HUB_SCHEME)):
        return _from_reference(reference, pretrained)
    if path.is_file():
        raise ValueError(f"{reference} is a file: give the model's open_clip name and pass the file as pretrained")
    if "/" in reference and reference.replace("/", "-") not in open_clip.list_models():
        raise ValueError(f"no such folder: {reference} (nor has open_clip a model of that name)")
    name = architecture.builtin_name(reference)
    if pretrained is None:
        raise ValueError(
            f"{reference} alone has no weights: pass as pretrained a checkpoint file or one of "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'no tags'}"
        )
    return build(name=name, config=None, pretrained=pretrained, image_size=None, context_length=None, seed=0)


def save(clip: Clip, folder: Path) -> None:
    """Write the model as a folder that open_clip loads; the config is written last, so a folder with it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in clip.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    if isinstance(clip.tokenizer, HFTokenizer):
        clip.tokenizer.save_pretrained(folder)
    save_config_for_hf(clip.model, folder / CONFIG_FILE, clip.model_cfg)


def _from_config(model_cfg: dict[str, Any], name: str | None, pretrained: str | None) -> Clip:
    checkpoint_path, preprocess_cfg = _checkpoint(name, pretrained) if pretrained else (None, {})
    # open_clip builds a model from a folder without weights too, so building and loading share one code path
    with TemporaryDirectory() as folder, _without_open_clip_log():
        (Path(folder) / CONFIG_FILE).write_text(json.dumps({"model_cfg": model_cfg}))
        model = open_clip.create_model(
            f"{LOCAL_SCHEME}{folder}",
            force_preprocess_cfg=preprocess_cfg,
            pretrained_image=checkpoint_path is None and model_cfg["vision_cfg"].get("timm_model_pretrained", False),
            pretrained_text=checkpoint_path is None,
            output_dict=True,
        )
    if checkpoint_path is not None:
        _load_weights(model, checkpoint_path)
    return _clip(model, model_cfg, _tokenizer(model_cfg))


def _from_reference(
    reference: str, pretrained: str | None, *, image_size: int | None = None, context_length: int | None = None
) -> Clip:
    if pretrained is not None:
        raise ValueError(f"got pretrained={pretrained!r} with {reference!r}, which has weights: remove pretrained")
    if reference.startswith(LOCAL_SCHEME):
        config_of(reference)
    try:
        _refuse_code(reference)
        with _without_open_clip_log():
            model = open_clip.create_model(
                reference,
                force_image_size=image_size,
                force_context_length=context_length,
                output_dict=True,
                require_pretrained=True,
            )
            model_cfg = open_clip.get_model_config(reference)
            tokenizer = open_clip.get_tokenizer(reference, context_length=context_length)
    except (*UNREADABLE, OSError, ImportError) as error:
        raise ValueError(f"cannot load {reference}: {one_line(error)}") from error
    if image_size is not None:
        model_cfg["vision_cfg"]["image_size"] = image_size
    if context_length is not None:
        model_cfg["text_cfg"]["context_length"] = context_length
    return _clip(model, model_cfg, tokenizer)


def config_of(reference: str) -> Path:
    """Return the config file of a `local-dir:` reference. Errors: `ValueError` if there is none."""
    folder = Path(reference.removeprefix(LOCAL_SCHEME))
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"no model folder at {folder}: expected {CONFIG_FILE} and {WEIGHTS_FILE} in it")
    return folder / CONFIG_FILE


def _checkpoint(name: str | None, pretrained: str) -> tuple[str, dict[str, Any]]:
    """Return the file of a pretrained tag or path, and its preprocess config (empty: the model's default)."""
    if Path(pretrained).is_file():
        return pretrained, {}
    _check_tag(name, pretrained)
    preprocess_cfg = open_clip.get_pretrained_cfg(name, pretrained)
    return open_clip.download_pretrained(preprocess_cfg), preprocess_cfg


def _check_tag(name: str | None, pretrained: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name) if name else []
    if pretrained not in tags:
        raise ValueError(
            f"pretrained={pretrained!r} is neither a file nor a tag of {name or 'a model config'}; "
            f"tags: {', '.join(tags) or 'none'}"
        )


def _load_weights(model: Model, checkpoint_path: str) -> None:
    start = None if model.logit_bias is None else (model.logit_scale.clone(), model.logit_bias.clone())
    try:
        open_clip.load_checkpoint(model, checkpoint_path)
    except UnpicklingError as error:
        raise ValueError(
            f"{checkpoint_path} contains more than tensors, and loading it would run code from the file; expected "
            "safetensors or a state dict that torch.save wrote"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{checkpoint_path} does not fit the model: {one_line(error)}") from error
    if start is not None and not model.logit_bias.any():
        # the checkpoint of a model without a bias: open_clip sets it to 0, and the scale belongs to another loss
        with torch.no_grad():
            model.logit_scale.copy_(start[0])
            model.logit_bias.copy_(start[1])


def _refuse_code(reference: str) -> None:
    # the options in the config of a folder or a hub repository go to transformers unchecked
    config = open_clip.get_model_config(reference) or {}
    _check_options(config.get("text_cfg") or {}, reference)


def _check_options(text_cfg: dict[str, Any], name: str) -> None:
    if "trust_remote_code" in (text_cfg.get("tokenizer_kwargs") or {}):
        raise ValueError(f"{name}: trust_remote_code in its tokenizer_kwargs would run code from the model; remove it")


def _tokenizer(model_cfg: dict[str, Any]) -> Tokenizer:
    text_cfg = model_cfg["text_cfg"]
    _check_options(text_cfg, "the model's config")
    options = {"context_length": text_cfg["context_length"], **(text_cfg.get("tokenizer_kwargs") or {})}
    if text_cfg.get("hf_tokenizer_name"):
        mode = text_cfg.get("tokenizer_mode")
        return HFTokenizer(text_cfg["hf_tokenizer_name"], tokenizer_mode=mode, **options)
    return open_clip.SimpleTokenizer(**options)


def _clip(model: Model, model_cfg: dict[str, Any], tokenizer: Tokenizer) -> Clip:
    # a config from JSON has lists, a new one has tuples
    values = ((key, model.visual.preprocess_cfg[key]) for key in PREPROCESS_KEYS)
    preprocess_cfg = {key: tuple(value) if isinstance(value, list) else value for key, value in values}
    # channels last is a fifth faster for convolutions (timm resnet10t, bf16 on a CPU) and has no effect on attention;
    # `Normaliser` gives images the same layout
    model = model.to(memory_format=torch.channels_last)
    return Clip(model=model, model_cfg=model_cfg, preprocess_cfg=preprocess_cfg, tokenizer=tokenizer)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # the CPU generator only: `torch.manual_seed` would also reseed every GPU of the process
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _without_open_clip_log() -> Iterator[None]:
    # open_clip logs each step of loading on the root logger, and warns of random weights, which are intended here
    def drop(record: logging.LogRecord) -> bool:
        return False

    root = logging.getLogger()
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
