"""Unit-norm float32 features of images and captions, batch by batch, in inference mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from orchestrator.clip.model import Clip, Model
from orchestrator.clip.preprocessing import Normaliser


def encode_images(clip: Clip, images: torch.Tensor, *, batch_size: int) -> torch.Tensor:
    """Return float32 [n, dim] on the CPU, from uint8 [n, 3, size, size] already cropped to the model's image size."""
    if not len(images):
        return _no_features(clip)
    device = _device(clip)
    normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], device)
    with _inference(clip.model):
        features = [clip.model.encode_image(normalise(chunk)) for chunk in images.split(batch_size)]
        return _unit_norm(features)


def encode_texts(clip: Clip, captions: Sequence[str], *, batch_size: int) -> torch.Tensor:
    """Return float32 [n, dim] on the CPU, from n captions."""
    if not captions:
        return _no_features(clip)
    device = _device(clip)
    with _inference(clip.model):
        features = []
        for start in range(0, len(captions), batch_size):
            tokens = clip.tokenizer(list(captions[start : start + batch_size]))
            features.append(clip.model.encode_text(tokens.to(device)))
        return _unit_norm(features)


def _no_features(clip: Clip) -> torch.Tensor:
    # a model may not be able to encode an empty batch
    return torch.empty(0, clip.model_cfg["embed_dim"])


def _unit_norm(chunks: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.cat([chunk.float() for chunk in chunks]), dim=-1).cpu()


def _device(clip: Clip) -> torch.device:
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
