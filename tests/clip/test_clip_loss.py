"""Compare the masked loss with open_clip's loss on one worker. `test_clip_ddp` covers several workers."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F

from orchestrator.clip.loss import MaskedClipLoss

SCALE = 14.3


def features(num: int = 12, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = F.normalize(torch.randn(2, num, dim, generator=generator), dim=-1)
    return both[0].clone().requires_grad_(), both[1].clone().requires_grad_()


def loss_and_gradients(valid: torch.Tensor) -> list[torch.Tensor]:
    images, texts = features(len(valid))
    scale = torch.tensor(SCALE, requires_grad=True)
    loss = MaskedClipLoss()(images, texts, scale, valid)
    loss.backward()
    return [loss.detach(), images.grad, texts.grad, scale.grad]


def test_with_all_slots_valid_it_equals_open_clips_loss() -> None:
    images, texts = features()
    scale = torch.tensor(SCALE, requires_grad=True)
    expected = open_clip.ClipLoss()(images, texts, scale)
    expected.backward()
    loss, *gradients = loss_and_gradients(torch.ones(12, dtype=torch.bool))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients, [images.grad, texts.grad, scale.grad], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("masked", [[0], [3, 11], [0, 1, 2, 3, 4, 5], list(range(11))])
def test_masked_slots_do_not_change_loss_or_gradients(masked: list[int]) -> None:
    valid = torch.ones(12, dtype=torch.bool)
    valid[masked] = False
    images, texts = features()
    expected = open_clip.ClipLoss()(images[valid], texts[valid], torch.tensor(SCALE))
    expected.backward()
    loss, image_gradient, text_gradient, _ = loss_and_gradients(valid)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(image_gradient, images.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(text_gradient, texts.grad, rtol=1e-5, atol=1e-7)
    assert not image_gradient[~valid].any()
    assert not text_gradient[~valid].any()


def test_no_valid_slot_gives_zero_and_zero_gradients() -> None:
    for value in loss_and_gradients(torch.zeros(12, dtype=torch.bool)):
        assert torch.equal(value, torch.zeros_like(value))


def test_a_logit_bias_has_a_gradient_but_does_not_change_the_loss() -> None:
    images, texts = features()
    valid = torch.ones(12, dtype=torch.bool)
    bias = torch.tensor(-10.0, requires_grad=True)
    with_bias = MaskedClipLoss()(images, texts, torch.tensor(SCALE), valid, bias)
    torch.testing.assert_close(with_bias, MaskedClipLoss()(images, texts, torch.tensor(SCALE), valid))
    with_bias.backward()
    assert bias.grad is not None
    assert abs(bias.grad.item()) < 1e-5
