"""An actor that holds the encoder and turns batches of pairs into vectors."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.clip import encoders
from orchestrator.clip.encoders import Encoder
from orchestrator.clip.tokens import Captions, captions_of
from orchestrator.config import EfficientNetLite0Encoder, OpenClipEncoder, TimmEncoder
from orchestrator.config.embedding import EncoderConfig, Tower
from orchestrator.embedding.pool import Rows
from orchestrator.embedding.vectors import clip_scores
from orchestrator.engine import gpus
from orchestrator.engine.metering import Meter


def build_encoder(settings: EncoderConfig) -> Encoder:
    """The encoder that the settings name, on the CPU. Errors: `ValueError`, one line, for a model that cannot be
    loaded."""
    match settings:
        case OpenClipEncoder():
            return encoders.open_clip_encoder(
                name=settings.model, pretrained=settings.pretrained, towers=settings.towers
            )
        case TimmEncoder():
            return encoders.timm_encoder(
                name=settings.model, checkpoint=settings.checkpoint, image_size=settings.image_size
            )
        case EfficientNetLite0Encoder():
            return encoders.efficientnet_lite0(image_size=settings.image_size)


class Description(NamedTuple):
    """Properties of an encoder that a pass needs before it reads data: `image_input` is the image size, crop fraction
    and resize mode; `dims` are the lengths of the vectors; `tokenize` belongs to the text tower, if there is one."""

    image_input: tuple[int, float, str]
    dims: dict[Tower, int]
    tokenize: Captions | None


def describe(settings: EncoderConfig) -> Description:
    """Builds the encoder once and describes it. Errors: `ValueError`, one line, for a model that cannot be loaded."""
    encoder = build_encoder(settings)
    taken = encoder.image_input
    tokenize = captions_of(encoder.clip.tokenizer) if "text" in encoder.dims else None
    return Description((taken.size, taken.crop_fraction, taken.resize_mode), dict(encoder.dims), tokenize)


class Embedder:
    """One encoder on one GPU, or on its share of a node's cores.

    On a GPU, several threads call it at once. Each has a CUDA stream: the copies of one thread's batch overlap with
    the computation of another's."""

    def __init__(self, settings: EncoderConfig, num_threads: int, meter: Meter):
        self.meter, self.of_thread = meter, threading.local()
        self.device = torch.device("cuda" if gpus.num_own() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(num_threads)
        else:
            # TF32 for the towers alone: this process computes nothing else on its GPU
            torch.set_float32_matmul_precision("high")
        self.encoder = build_encoder(settings).place(self.device, settings.precision, compiled=settings.compile)

    def __call__(self, batch: Rows) -> Rows:
        """Replaces pixels and tokens by columns `image` and/or `text`, float16 [n, dim] of unit norm, all zero where
        there is nothing to embed; with both also `clip_score`, the cosine of the vectors before rounding, float32
        [n]."""
        with self._stream():
            return self.meter.around(self._embedded)(batch)

    def _stream(self) -> AbstractContextManager:
        if self.device.type == "cpu":
            return nullcontext()
        if not hasattr(self.of_thread, "stream"):
            # the weights are copied on another stream
            torch.cuda.synchronize(self.device)
            self.of_thread.stream = torch.cuda.Stream(self.device)
        return torch.cuda.stream(self.of_thread.stream)

    def _embedded(self, batch: Rows) -> Rows:
        vectors: dict[Tower, NDArray[np.float32]] = {}
        problems = batch.get("problem", np.full(len(batch["key"]), "", object)).copy()
        if "image" in self.encoder.dims:
            # the decoder writes [n, h, w, 3]: the permuted view is in the channels-last format of convolutions
            images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
            vectors["image"] = _usable(self.encoder.encode_images(images), batch["has_image"], problems)
        if "text" in self.encoder.dims:
            tokens = torch.from_numpy(batch["tokens"])
            vectors["text"] = _usable(self.encoder.encode_tokens(tokens), batch["has_text"], problems)
        places = {name: batch[name] for name in ("part", "row", "expected", "key")}
        scores = {"clip_score": clip_scores(vectors["image"], vectors["text"])} if len(vectors) == 2 else {}
        stored: Rows = {tower: values.astype(np.float16) for tower, values in vectors.items()}
        return {**places, "problem": problems, **stored, **scores}


def _usable(features: torch.Tensor, valid: np.ndarray, problems: np.ndarray) -> NDArray[np.float32]:
    valid, is_finite = valid.astype(bool), torch.isfinite(features).all(dim=1).numpy()
    # an overflowed vector has no direction: it counts as missing
    problems[valid & ~is_finite] = "not_finite"
    return np.where((valid & is_finite)[:, None], features.numpy(), 0)
