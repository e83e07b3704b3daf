"""Models that are small enough to train in a test, and pairs that are not random noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.clip.model import Clip, build
from orchestrator.clip.train_step import Batch

CAPTIONS = ["a red dog", "A photo of a cat!", "two zebras on a beach", "gramastar", "", "naïve café ☕", "1984", "sea"]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return CAPTIONS


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    """open_clip towers. They have no batch norm, so no result depends on how a batch is split."""
    return {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
    }


@pytest.fixture
def timm_config(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """A model with a timm image tower, which has batch norm."""
    return {**tiny_config, "vision_cfg": {"timm_model_name": "test_resnet", "image_size": 32}}


@pytest.fixture
def tiny_clip(tiny_config: dict[str, Any]) -> Clip:
    return build(name=None, config=tiny_config, pretrained=None, image_size=None, context_length=None, seed=0)


@pytest.fixture
def timm_clip(timm_config: dict[str, Any]) -> Clip:
    return build(name=None, config=timm_config, pretrained=None, image_size=None, context_length=None, seed=0)


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Return images, uint8 [8, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (len(CAPTIONS), 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def batch(tiny_clip: Clip, images: torch.Tensor) -> Batch:
    return Batch(images=images, texts=tiny_clip.tokenizer(CAPTIONS), valid=torch.ones(len(CAPTIONS), dtype=torch.bool))
