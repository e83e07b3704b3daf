"""Unit-norm float32 features of images and captions, batch by batch, in inference mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from orchestrator.clip.model import Clip, Model
from orchestrator.clip.precision import autocast
from orchestrator.clip.preprocessing import Normaliser
from orchestrator.clip.recipe import Precision
from orchestrator.clip.towers import encode_trimmed, end_of_text, trim_texts


def encode_images(clip: Clip, images: torch.Tensor, *, batch_size: int, precision: Precision = "fp32") -> torch.Tensor:
    """Return float32 [n, dim] on the CPU, from uint8 [n, 3, size, size] already cropped to the model's image size."""
    if not len(images):
        return _no_features(clip)
    device = device_of(clip)
    normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], device)
    if device.type == "cuda" and not images.is_pinned():
        # a copy from pinned memory does not block the host
        images = images.pin_memory()
    with _inference(clip.model), autocast(precision, device):
        features = [clip.model.encode_image(normalise(chunk)) for chunk in images.split(batch_size)]
        return _unit_norm(features)


def encode_texts(
    clip: Clip, captions: Sequence[str], *, batch_size: int, precision: Precision = "fp32"
) -> torch.Tensor:
    """Return float32 [n, dim] on the CPU, from n captions."""
    if not captions:
        return _no_features(clip)
    return encode_tokens(clip, clip.tokenizer(list(captions)), batch_size=batch_size, precision=precision)


def encode_tokens(clip: Clip, tokens: torch.Tensor, *, batch_size: int, precision: Precision = "fp32") -> torch.Tensor:
    """Return float32 [n, dim] on the CPU, from the tokens of n captions, integers [n, context] on the CPU.

    A GPU does not compute the padding after the longest caption of a batch, if the text tower allows that."""
    if not len(tokens):
        return _no_features(clip)
    device = device_of(clip)
    # shorter captions round differently: on CPUs the features stay those of the full context, to the bit
    end = end_of_text(clip.model) if device.type == "cuda" else None
    with _inference(clip.model), autocast(precision, device):
        features = []
        for chunk in tokens.split(batch_size):
            if end is None:
                features.append(clip.model.encode_text(_on(device, chunk)))
            else:
                features.append(encode_trimmed(clip.model, _on(device, trim_texts(chunk, end)), end))
        return _unit_norm(features)


def _on(device: torch.device, tokens: torch.Tensor) -> torch.Tensor:
    pinned = tokens.pin_memory() if device.type == "cuda" and not tokens.is_pinned() else tokens
    return pinned.to(device, non_blocking=True).long()


def _no_features(clip: Clip) -> torch.Tensor:
    # a model may not be able to encode an empty batch
    return torch.empty(0, clip.model_cfg["embed_dim"])


def _unit_norm(chunks: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.cat([chunk.float() for chunk in chunks]), dim=-1).cpu()


def device_of(clip: Clip) -> torch.device:
    """Return the device of a model."""
    return next(clip.model.parameters()).device


@contextmanager
def _inference(model: Model) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
