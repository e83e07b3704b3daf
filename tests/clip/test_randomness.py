"""Dropout is found in every layer. Its randomness depends on the step and the rank, not on earlier random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.clip.model import Clip, build
from orchestrator.clip.randomness import draws, mix, seeded
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, TrainStep

CPU = torch.device("cpu")


def make_clip(config: dict[str, Any], **vision_cfg: Any) -> Clip:
    config = {**config, "vision_cfg": {**config["vision_cfg"], **vision_cfg}}
    return build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0)


def test_dropout_is_found_in_every_kind_of_layer(tiny_config: dict[str, Any], timm_config: dict[str, Any]) -> None:
    assert not draws(make_clip(tiny_config).model)
    assert not draws(make_clip(timm_config).model)
    assert draws(make_clip(timm_config, timm_drop=0.1).model)
    assert draws(make_clip({**timm_config, "vision_cfg": {"timm_model_name": "test_vit"}}, timm_drop_path=0.1).model)
    attention = make_clip(tiny_config).model
    attention.transformer.resblocks[0].attn.dropout = 0.1
    assert draws(attention)


def test_dropout_depends_on_step_and_seed_not_on_earlier_random_numbers(
    timm_config: dict[str, Any], batch: Batch
) -> None:
    def loss(step: int, seed: int = 0) -> float:
        train_step = TrainStep(make_clip(timm_config, timm_drop=0.5), Recipe(seed=seed), device=CPU)
        return train_step.run(batch, lr=0.0, step=step).loss.item()

    first = loss(4)
    torch.rand(7)
    assert loss(4) == first
    assert len({first, loss(5), loss(4, seed=1)}) == 3


@pytest.mark.parametrize("parts", [(0,), (1, 2), (2, 1), (-1, 2**62)])
def test_seeded_restores_the_generator(parts: tuple[int, ...]) -> None:
    before = torch.get_rng_state()
    with seeded(CPU, *parts):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(CPU, *parts):
        assert torch.equal(torch.rand(3), inside)
    with seeded(CPU, *parts, 0):
        assert not torch.equal(torch.rand(3), inside)


def test_mix_depends_on_the_order_of_its_parts() -> None:
    values = [int(mix(*parts)) for parts in ((0, 1), (1, 0), (1,), (1, 0, 0), (0, 0))]
    assert len(set(values)) == len(values)
