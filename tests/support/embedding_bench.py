"""An embedding stage over a small pool, and the obvious loop that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.config import Config
from orchestrator.data.catalog import Catalog, catalog_stage
from orchestrator.data.image_decode import BadImage, decode, evaluation_crop
from orchestrator.embedding import embedding_stages
from orchestrator.embedding.actor import build_encoder
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.console import Display
from orchestrator.engine.stage import Stage
from orchestrator.source import Source, open_source
from tests.support.pools import (
    Pair,
    bomb,
    config_of,
    make_pairs,
    torn,
)

ROUNDING = 2e-3  # float16 of unit vectors, and of products of two
MAX_PIXELS = 10**7


def odd_pairs(num_pairs: int) -> list[Pair]:
    """Whole pairs but for some: a torn picture, a bomb, no picture, no caption, a blank caption, neither."""
    pairs = make_pairs(num_pairs)
    changes: dict[int, dict[str, Any]] = {
        2: {"image": torn(pairs[2].image or b"")},
        5: {"image": bomb()},
        9: {"image": None},
        10: {"caption": None},
        13: {"caption": "   "},
        17: {"caption": None, "image": torn(pairs[17].image or b"")},
        18: {"image": b"no picture"},
    }
    for number, change in changes.items():
        pairs[number] = Pair(**{**vars(pairs[number]), **change})
    return pairs


@dataclass(frozen=True)
class Bench:
    """A catalogued pool, and its embedding stage by settings."""

    config: Config
    source: Source
    catalog: Catalog

    @classmethod
    def of(cls, source: dict[str, Any], folder: Path, **embedding: Any) -> Bench:
        config = config_of({"limits": {"max_broken_pairs": 1.0}, **source}, folder / "store", embedding=embedding)
        opened = open_source(config.source)
        read = catalog_stage(config.store, opened, config.source.limits)
        if not read.artifact.is_complete():
            read.build(Display())
        return cls(config, opened, Catalog(read.artifact))

    def stage(self) -> Stage:
        """The only embedding's stage."""
        (name,) = self.config.embedding
        (stage,) = embedding_stages(self.config, name, self.source, self.catalog)
        return stage

    def build(self) -> Embedding:
        """The embedding, what is missing of it computed."""
        stage = self.stage()
        stage.build(Display())
        return Embedding(stage.artifact)


def clip_settings(folder: str, **settings: Any) -> dict[str, Any]:
    """The tiny model's two towers, few pairs a batch, many of them allowed to be bad."""
    defaults = {"batch_size": 7, "max_image_pixels": MAX_PIXELS, "max_bad_pairs": 0.5}
    return {"kind": "open_clip", "model": folder, "pretrained": None, **defaults, **settings}


def one_by_one(settings: Any, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """The obvious loop: each picture and each caption through the encoder alone."""
    encoder = build_encoder(settings).place(torch.device("cpu"), settings.precision)
    size, fraction = encoder.image_input.size, encoder.image_input.crop_fraction
    vectors: dict[str, np.ndarray] = {
        tower: np.zeros((len(pairs), dim), np.float32) for tower, dim in encoder.dims.items()
    }
    for row, pair in enumerate(pairs):
        if "image" in vectors and pair.image is not None:
            try:
                pixels = decode(
                    pair.image,
                    size=size,
                    crop=lambda w, h: evaluation_crop(w, h, size=size, fraction=fraction),
                    max_pixels=MAX_PIXELS,
                )
                vectors["image"][row] = encoder.encode_images(torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2))
            except BadImage:
                pass
        if "text" in vectors and pair.caption and pair.caption.strip():
            vectors["text"][row] = encoder.encode_texts([pair.caption])
    return vectors


def whole(embedding: Embedding, name: str) -> np.ndarray:
    """All parts' rows of a file, in order."""
    return np.concatenate([getattr(embedding, name)(index) for index in range(len(embedding.artifact.parts))])


def times(embedding: Embedding) -> dict[Path, int]:
    """Every file of the parts, with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in Path(embedding.artifact.path("parts")).iterdir()}
