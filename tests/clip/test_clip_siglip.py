"""Compare the masked sigmoid loss with open_clip's loss on one worker. `test_clip_ddp` covers several workers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss

from orchestrator.clip.model import Clip, build
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.siglip import MaskedSigLipLoss
from orchestrator.clip.train_step import Batch, Learner

CPU = torch.device("cpu")


def values(num: int = 12, dim: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = F.normalize(torch.randn(2, num, dim, generator=generator), dim=-1)
    leaves = (both[0].clone(), both[1].clone(), torch.tensor(10.0), torch.tensor(-10.0))
    return [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("masked", [[], [0], [3, 11], [0, 1, 2, 3, 4, 5], list(range(11))])
def test_it_equals_open_clips_loss_of_the_valid_slots(masked: list[int]) -> None:
    valid = torch.ones(12, dtype=torch.bool)
    valid[masked] = False
    images, texts, scale, bias = values()
    expected = SigLipLoss()(images[valid], texts[valid], scale, bias)
    expected_gradients = torch.autograd.grad(expected, [images, texts, scale, bias])
    loss = MaskedSigLipLoss()(images, texts, scale, valid, bias)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    gradients = torch.autograd.grad(loss, [images, texts, scale, bias])
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-6)


def test_no_valid_slot_gives_zero_and_zero_gradients() -> None:
    images, texts, scale, bias = values()
    loss = MaskedSigLipLoss()(images, texts, scale, torch.zeros(12, dtype=torch.bool), bias)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, [images, texts, scale, bias]))


def test_a_new_siglip_model_starts_with_open_clips_scale_and_bias(tiny_config: dict[str, Any], batch: Batch) -> None:
    def make(config: dict[str, Any]) -> Clip:
        return build(
            name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0, loss="siglip"
        )

    clip = make(tiny_config)
    assert clip.model.logit_scale.item() == pytest.approx(math.log(10))
    assert clip.model.logit_bias is not None
    assert clip.model.logit_bias.item() == -10
    assert clip.model_cfg["init_logit_bias"] == -10
    asked = make({**tiny_config, "init_logit_bias": -5.0}).model.logit_bias
    assert asked is not None
    assert asked.item() == -5
    learner = Learner(clip, Recipe(loss="siglip"), device=CPU)
    first, *_, last = [learner.step(batch, lr=3e-3, step=step).loss.item() for step in range(60)]
    assert first > 5 > 1 > last


def test_a_model_without_a_bias_is_refused(tiny_clip: Clip) -> None:
    with pytest.raises(ValueError, match=r"needs a model with a logit bias.*init_logit_bias"):
        Learner(tiny_clip, Recipe(loss="siglip"), device=CPU)
