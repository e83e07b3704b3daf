"""The training step: it learns, clips, clamps, normalises and respects the mask."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torchvision.transforms.functional import to_pil_image

from orchestrator.clip import precision
from orchestrator.clip.model import Clip, build
from orchestrator.clip.preprocessing import Normaliser
from orchestrator.clip.recipe import Precision, Recipe
from orchestrator.clip.train_step import Batch, TrainStep

CPU = torch.device("cpu")


def make_train_step(clip: Clip, **settings: Any) -> TrainStep:
    return TrainStep(clip, Recipe(**settings), device=CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["tiny", "timm"])
def test_training_learns_eight_pairs(
    kind: str, precision: Precision, request: pytest.FixtureRequest, batch: Batch
) -> None:
    train_step = make_train_step(request.getfixturevalue(f"{kind}_clip"), precision=precision)
    first, *_, last = [train_step.run(batch, lr=2e-3, step=step) for step in range(40)]
    assert first.loss.item() > 1.5 > 0.3 > last.loss.item()
    assert first.loss.dtype == torch.float32
    assert not first.loss.requires_grad


def test_the_learning_rate_of_the_step_is_used(tiny_clip: Clip, batch: Batch) -> None:
    before = tiny_clip.model.text_projection.detach().clone()
    train_step = make_train_step(tiny_clip)
    train_step.run(batch, lr=0.0, step=0)
    assert torch.equal(tiny_clip.model.text_projection, before)
    train_step.run(batch, lr=1e-2, step=1)
    moved = (tiny_clip.model.text_projection.detach() - before).abs().max().item()
    assert 5e-3 < moved < 2e-2


def test_a_step_after_an_evaluation_trains_again(timm_clip: Clip, batch: Batch) -> None:
    timm_clip.model.eval()
    running_mean = timm_clip.model.visual.trunk.bn1.running_mean
    before = running_mean.clone()
    make_train_step(timm_clip).run(batch, lr=0.0, step=0)
    assert not torch.equal(running_mean, before)


@pytest.mark.parametrize(("log_scale", "expected"), [(9.0, 100.0), (-3.0, 1.0)])
def test_the_logit_scale_stays_between_1_and_100(
    log_scale: float, expected: float, tiny_clip: Clip, batch: Batch
) -> None:
    with torch.no_grad():
        tiny_clip.model.logit_scale.fill_(log_scale)
    metrics = make_train_step(tiny_clip).run(batch, lr=0.0, step=0)
    assert metrics.logit_scale.item() == pytest.approx(expected, rel=1e-5)
    assert tiny_clip.model.logit_scale.exp().item() == pytest.approx(expected, rel=1e-5)


def test_gradients_are_clipped_and_the_norm_before_clipping_is_reported(
    tiny_config: dict[str, Any], batch: Batch
) -> None:
    def gradient_norm(clip: Clip) -> float:
        gradients = [parameter.grad for parameter in clip.model.parameters()]
        return math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))

    free, clipped = (
        build(name=None, config=tiny_config, pretrained=None, image_size=None, context_length=None, seed=0)
        for _ in range(2)
    )
    reported_free = make_train_step(free).run(batch, lr=0.0, step=0).grad_norm.item()
    reported_clipped = make_train_step(clipped, grad_clip_norm=0.01).run(batch, lr=0.0, step=0).grad_norm.item()
    assert reported_free == pytest.approx(gradient_norm(free), rel=1e-5)
    assert reported_clipped == reported_free > 0.01
    assert gradient_norm(clipped) == pytest.approx(0.01, rel=1e-3)


def test_the_content_of_a_masked_slot_does_not_matter(tiny_config: dict[str, Any], batch: Batch) -> None:
    valid = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
    other_images, other_texts = batch.images.clone(), batch.texts.clone()
    other_images[~valid], other_texts[~valid] = 0, 0
    weights = []
    for images, texts in ((batch.images, batch.texts), (other_images, other_texts)):
        clip = build(name=None, config=tiny_config, pretrained=None, image_size=None, context_length=None, seed=0)
        make_train_step(clip).run(Batch(images, texts, valid), lr=1e-3, step=0)
        weights.append(dict(clip.model.state_dict()))
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


def test_a_batch_without_a_valid_slot_gives_no_nan(tiny_clip: Clip, batch: Batch) -> None:
    empty = replace(batch, valid=torch.zeros(8, dtype=torch.bool))
    metrics = make_train_step(tiny_clip, grad_clip_norm=1.0).run(empty, lr=1e-3, step=0)
    assert metrics.loss.item() == metrics.grad_norm.item() == 0.0
    assert all(torch.isfinite(parameter).all() for parameter in tiny_clip.model.parameters())


def test_pixels_are_normalised_as_in_open_clips_transform(images: torch.Tensor) -> None:
    cfg = PreprocessCfg(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    transform = image_transform_v2(cfg, is_train=False)
    expected = torch.stack([transform(to_pil_image(image)) for image in images])
    torch.testing.assert_close(Normaliser(cfg.mean, cfg.std, CPU)(images), expected, rtol=0, atol=1e-6)


def test_fp16_without_a_gpu_and_unknown_precisions_are_errors(tiny_clip: Clip) -> None:
    with pytest.raises(ValueError, match=r"fp16 needs a GPU.*use bf16 or fp32"):
        make_train_step(tiny_clip, precision="fp16")
    with pytest.raises(ValueError, match="unknown precision 'int8': valid are fp32, bf16, fp16"):
        make_train_step(tiny_clip, precision="int8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_on_a_gpu(precision: Precision, tiny_clip: Clip, batch: Batch) -> None:
    train_step = TrainStep(tiny_clip, Recipe(precision=precision, grad_clip_norm=1.0), device=torch.device("cuda"))
    assert [train_step.run(batch, lr=2e-3, step=step) for step in range(60)][-1].loss.item() < 0.5


def test_a_captioning_decoder_is_refused(tiny_config: dict[str, Any]) -> None:
    tiny_config["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    tiny_config["text_cfg"] |= {"embed_cls": True, "output_tokens": True}
    decoder = {"context_length": 15, "width": 32, "heads": 2, "layers": 1, "vocab_size": 49408}
    clip = build(
        name=None,
        config={**tiny_config, "custom_text": True, "multimodal_cfg": decoder},
        pretrained=None,
        image_size=None,
        context_length=None,
        seed=0,
    )
    with pytest.raises(ValueError, match="CoCa"):
        make_train_step(clip)


def test_the_first_bad_step_is_found(tiny_clip: Clip, batch: Batch) -> None:
    train_step = make_train_step(tiny_clip)
    train_step.run(batch, lr=1e-3, step=7)
    good = train_step.state()
    assert good is not None
    assert train_step.first_bad_step() is None
    with torch.no_grad():
        tiny_clip.model.text_projection[3, 5] = math.inf
    for step in (8, 9):
        train_step.run(batch, lr=1e-3, step=step)
    assert train_step.first_bad_step() == 8
    train_step.restore(good)
    train_step.run(batch, lr=1e-3, step=8)
    assert train_step.first_bad_step() is None


def test_the_maximum_logit_scale_can_be_set(tiny_clip: Clip, batch: Batch) -> None:
    with torch.no_grad():
        tiny_clip.model.logit_scale.fill_(9.0)
    assert make_train_step(tiny_clip, max_logit_scale=30.0).run(
        batch, lr=0.0, step=0
    ).logit_scale.item() == pytest.approx(30)


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [("cuda", True, "bf16"), ("cuda", False, "fp16"), ("cpu", True, "bf16"), ("cpu", False, "fp32")],
)
def test_auto_precision_is_the_fastest_of_the_device(
    device: str, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert precision.native(torch.device(device)) == expected
