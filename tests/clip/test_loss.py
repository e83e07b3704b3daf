"""Compare the masked losses with open_clip's losses on one worker. `test_parallel` covers several workers."""

from __future__ import annotations

import math
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.clip.activations import peak_bytes
from orchestrator.clip.loss import MaskedClipLoss, MaskedSigLipLoss
from orchestrator.clip.memory import LOSS_COPIES
from orchestrator.clip.model import Clip, build
from orchestrator.clip.recipe import LossName, Recipe
from orchestrator.clip.train_step import Batch, TrainStep

CPU = torch.device("cpu")
SCALE = 14.3


class _OperationsOn(TorchDispatchMode):
    """Notes the operations that give a tensor of some size and touch its memory."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.names = numel, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.numel and not func.is_view:
            self.names.append(func.name().split(".")[0])
        return result


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


def siglip_inputs(num: int = 12, dim: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = F.normalize(torch.randn(2, num, dim, generator=generator), dim=-1)
    leaves = (both[0].clone(), both[1].clone(), torch.tensor(10.0), torch.tensor(-10.0))
    return [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("masked", [[], [0], [3, 11], [0, 1, 2, 3, 4, 5], list(range(11))])
def test_siglip_equals_open_clips_loss_of_the_valid_slots(masked: list[int]) -> None:
    valid = torch.ones(12, dtype=torch.bool)
    valid[masked] = False
    images, texts, scale, bias = siglip_inputs()
    expected = SigLipLoss()(images[valid], texts[valid], scale, bias)
    expected_gradients = torch.autograd.grad(expected, [images, texts, scale, bias])
    loss = MaskedSigLipLoss()(images, texts, scale, valid, bias)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    gradients = torch.autograd.grad(loss, [images, texts, scale, bias])
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-6)


def test_siglip_with_no_valid_slot_gives_zero_and_zero_gradients() -> None:
    images, texts, scale, bias = siglip_inputs()
    loss = MaskedSigLipLoss()(images, texts, scale, torch.zeros(12, dtype=torch.bool), bias)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, [images, texts, scale, bias]))


def plain_and_by_rows(
    loss: type[MaskedClipLoss | MaskedSigLipLoss], masked: list[int], rows: int, **settings: Any
) -> Any:
    """The value and the gradients of a loss computed at once, and `rows` rows at a time."""
    valid = torch.ones(12, dtype=torch.bool)
    valid[masked] = False
    found = []
    for one in (None, rows):
        inputs = siglip_inputs()
        images, texts, scale, bias = inputs
        value = loss(rows=one, **settings)(images, texts, scale, valid, bias)
        found.append((value.detach(), torch.autograd.grad(value, inputs)))
    return found


@pytest.mark.parametrize("rows", [1, 5, 6, 12, 100])
@pytest.mark.parametrize("masked", [[], [3, 11], list(range(12))])
@pytest.mark.parametrize("settings", [{}, {"local_loss": True}])
def test_the_loss_by_rows_has_the_same_value_and_gradients(
    settings: dict[str, Any], masked: list[int], rows: int
) -> None:
    plain, by_rows = plain_and_by_rows(MaskedClipLoss, masked, rows, **settings)
    torch.testing.assert_close(by_rows, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_siglip_by_rows_has_the_same_value_and_gradients(rows: int) -> None:
    plain, by_rows = plain_and_by_rows(MaskedSigLipLoss, [3, 11], rows)
    torch.testing.assert_close(by_rows, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [MaskedClipLoss, MaskedSigLipLoss])
def test_the_loss_by_rows_holds_only_these_rows_of_the_logits(loss: type[MaskedClipLoss | MaskedSigLipLoss]) -> None:
    num, rows = 512, 128
    name: LossName = "clip" if loss is MaskedClipLoss else "siglip"

    def copies(**settings: Any) -> float:
        images, texts = features(num)
        valid, scale, bias = torch.ones(num, dtype=torch.bool), torch.tensor(SCALE), torch.tensor(-1.0)
        module = loss(**settings)
        peak = peak_bytes(lambda: module(images, texts, scale, valid, bias).backward(), CPU)
        return peak / (num * 4 * (settings.get("rows") or num))

    whole = copies()
    assert 0.8 * LOSS_COPIES[name] < whole < 1.1 * LOSS_COPIES[name]
    assert copies(rows=rows) < 1.5 * whole


def test_a_local_loss_masks_its_logits_without_a_pass_over_them() -> None:
    num = 64
    images, texts = features(num)
    valid, scale = torch.ones(num, dtype=torch.bool), torch.tensor(SCALE)
    with _OperationsOn(num * num) as seen:
        MaskedClipLoss(local_loss=True)(images, texts, scale, valid)
    assert seen.names == ["aten::addmm", "aten::_log_softmax"] * 2


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
    train_step = TrainStep(clip, Recipe(loss="siglip"), device=CPU)
    first, *_, last = [train_step.run(batch, lr=3e-3, step=step).loss.item() for step in range(60)]
    assert first > 5 > 1 > last


def test_siglip_refuses_a_model_without_a_bias(tiny_clip: Clip) -> None:
    with pytest.raises(ValueError, match=r"needs a model with a logit bias.*init_logit_bias"):
        TrainStep(tiny_clip, Recipe(loss="siglip"), device=CPU)
