"""The models of an evaluation: where they are, and how they take their images. Without Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

import torch

from orchestrator.clip import model, preprocessing
from orchestrator.clip.model import Clip
from orchestrator.config.section import MAX_IMAGE_PIXELS
from orchestrator.data.image_decode import ImageDecoder, Interpolation
from orchestrator.errors import UserError
from orchestrator.storage import files


@dataclass(frozen=True, kw_only=True)
class Models:
    """Models by name: URIs of model folders or open_clip references. All models take the same image input."""

    references: Mapping[str, str]
    pretrained: str | None = None

    def image_size(self) -> int:
        """Return the side of the input images in pixels, without loading weights."""
        return model.side(self._preprocess_cfg()["size"])

    def decoder(self) -> ImageDecoder:
        """Return the image decoder, without loading weights. Errors: `UserError` for an unsupported preprocessing."""
        return _decoder(next(iter(self.references.values())), self._preprocess_cfg())

    def _preprocess_cfg(self) -> dict[str, Any]:
        reference = next(iter(self.references.values()))
        try:
            folder = _folder(reference)
            if folder is None:
                return preprocessing.preprocess_cfg(reference, pretrained=self.pretrained)
            config = files.read_json(files.join(folder, model.CONFIG_FILE))
            return preprocessing.of_saved(reference, config if isinstance(config, dict) else {})
        except (JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"checkpoint: {reference}/{model.CONFIG_FILE} is not JSON: {error}") from error
        except ValueError as error:
            raise UserError(f"checkpoint: {error}") from error

    def load(self, device: torch.device | None = None) -> dict[str, Clip]:
        """Load the models onto a device; None: the GPU that this process sees, otherwise the CPU."""
        clips = {name: self._load(reference) for name, reference in self.references.items()}
        for clip in clips.values():
            clip.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return clips

    def _load(self, reference: str) -> Clip:
        try:
            folder = _folder(reference)
            if folder is None:
                return model.load(reference, pretrained=self.pretrained)
            with tempfile.TemporaryDirectory() as here:
                files.copy(folder, here)
                try:
                    return model.load(here)
                except ValueError as error:
                    # the user knows the folder, not its copy
                    raise ValueError(str(error).replace(here, folder)) from error
        except ValueError as error:
            raise UserError(f"checkpoint: {error}") from error


def decoder_of(name: str, clip: Clip) -> ImageDecoder:
    """Return the image decoder of a loaded model. Errors: `UserError` for an unsupported preprocessing."""
    return _decoder(name, clip.preprocess_cfg)


def _folder(reference: str) -> str | None:
    # with or without open_clip's scheme for local folders; None if it is not a saved model folder
    folder = reference.removeprefix(model.LOCAL_SCHEME)
    return folder if files.exists(files.join(folder, model.CONFIG_FILE)) else None


def _decoder(name: str, preprocess_cfg: Mapping[str, Any]) -> ImageDecoder:
    try:
        taken = preprocessing.image_input(name, preprocess_cfg["size"], preprocess_cfg["resize_mode"])
    except ValueError as error:
        raise UserError(f"evaluation: {error}") from error
    # open_clip's third value, "random", is for training; open_clip evaluates such a model with bicubic
    interpolation: Interpolation = "bilinear" if preprocess_cfg["interpolation"] == "bilinear" else "bicubic"
    return ImageDecoder(
        size=taken.size,
        crop_fraction=taken.crop_fraction,
        resize_mode=taken.resize_mode,
        max_pixels=MAX_IMAGE_PIXELS,
        interpolation=interpolation,
    )
