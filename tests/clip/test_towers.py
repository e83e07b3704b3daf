"""Trimmed captions have the same features as padded ones. Text towers that need the padding get it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.clip.model import Model, build
from orchestrator.clip.towers import EndOfText, Towers, encode_trimmed, end_of_text, trim_texts


def make_model(config: dict[str, Any], **text_cfg: Any) -> Model:
    text_cfg = {**config["text_cfg"], "context_length": 40, "layers": 2, **text_cfg}
    clip = build(
        name=None,
        config={**config, "text_cfg": text_cfg},
        pretrained=None,
        image_size=None,
        context_length=None,
        seed=0,
    )
    return clip.model


def made_up_texts(lengths: list[int], eos: int = 49407, context: int = 40) -> torch.Tensor:
    texts = torch.zeros(len(lengths), context, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for row, length in zip(texts, lengths, strict=True):
        row[:length] = torch.randint(3, 40_000, (length,), generator=generator)
        row[length - 1] = eos
    return texts


ALLOWING: list[tuple[str, dict[str, Any], int]] = [
    ("CLIP", {}, 49407),
    ("CLIP", {"pool_type": "eos", "eos_id": 2}, 2),
    ("CustomTextCLIP", {}, 49407),
    ("CustomTextCLIP", {"pool_type": "eos", "eos_id": 2, "proj_bias": True}, 2),
    ("CustomTextCLIP", {"proj_type": "none", "ls_init_value": 0.1}, 49407),
]


@pytest.mark.parametrize(("kind", "text_cfg", "eos"), ALLOWING)
@pytest.mark.parametrize(("longest", "expected"), [(3, 8), (8, 8), (9, 16), (40, 40)])
def test_features_and_gradients_equal_those_of_the_full_context(
    longest: int, expected: int, kind: str, text_cfg: dict[str, Any], eos: int, tiny_config: dict[str, Any]
) -> None:
    model = make_model({**tiny_config, "custom_text": kind == "CustomTextCLIP"}, **text_cfg)
    assert type(model).__name__ == kind
    # float64, so that rounding hides no difference
    model.double()
    texts, end = made_up_texts([2, longest, 3], eos), end_of_text(model)
    assert end is not None
    trimmed = trim_texts(texts, end)
    assert trimmed.shape == (3, expected)
    weights = [weight for name, weight in model.named_parameters() if "visual" not in name and "logit" not in name]
    full, ours = model.encode_text(texts), encode_trimmed(model, trimmed, end)
    torch.testing.assert_close(ours, full, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad((features * features.detach().cos()).sum(), weights) for features in (ours, full)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_features_of_tokenizer_output_equal_those_of_the_full_context(
    tiny_config: dict[str, Any], captions: list[str]
) -> None:
    clip = build(name=None, config=tiny_config, pretrained=None, image_size=None, context_length=77, seed=0)
    texts, end = clip.tokenizer(captions), end_of_text(clip.model)
    assert end is not None
    trimmed = trim_texts(texts, end)
    assert trimmed.shape == (len(captions), 8)
    expected = clip.model.encode_text(texts)
    torch.testing.assert_close(encode_trimmed(clip.model, trimmed, end), expected, rtol=1e-5, atol=1e-6)


def test_trimmed_length_is_a_multiple_of_8_up_to_the_context(tiny_config: dict[str, Any]) -> None:
    end = EndOfText("argmax", 0)
    assert trim_texts(torch.zeros(4, 40, dtype=torch.int64), end).shape == (4, 8)
    assert trim_texts(made_up_texts([39]), end).shape == (1, 40)
    assert trim_texts(torch.zeros(4, 13, dtype=torch.int64), end).shape == (4, 8)
    assert trim_texts(made_up_texts([12], context=13), end).shape == (1, 13)


@pytest.mark.parametrize(
    "text_cfg", [{"no_causal_mask": True}, {"embed_cls": True}, {"pool_type": "last"}, {"pool_type": "first"}]
)
def test_a_tower_that_needs_padding_gets_the_full_length(text_cfg: dict[str, Any], tiny_config: dict[str, Any]) -> None:
    model = make_model({**tiny_config, "custom_text": True}, **text_cfg)
    towers, texts = Towers(model, trim_captions=True), made_up_texts([3, 5])
    assert end_of_text(model) is None
    assert towers.trimmed(texts) is texts
    features = towers(torch.zeros(2, 3, 32, 32), texts).texts
    expected = torch.nn.functional.normalize(model.encode_text(texts), dim=-1)
    torch.testing.assert_close(features, expected)


def test_trimming_can_be_switched_off(tiny_config: dict[str, Any]) -> None:
    texts = made_up_texts([3, 5])
    assert Towers(make_model(tiny_config), trim_captions=False).trimmed(texts) is texts
