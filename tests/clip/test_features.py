"""Features equal those of the model for every batch size, and the mode of the model does not change."""

from __future__ import annotations

import torch

from orchestrator.clip.features import encode_images, encode_texts
from orchestrator.clip.model import Clip
from orchestrator.clip.preprocessing import Normaliser


def test_features_equal_those_of_the_model_in_evaluation_mode(
    timm_clip: Clip, images: torch.Tensor, captions: list[str]
) -> None:
    timm_clip.model.train()
    image_features = encode_images(timm_clip, images, batch_size=3)
    text_features = encode_texts(timm_clip, captions, batch_size=5)
    assert timm_clip.model.training
    assert image_features.dtype == text_features.dtype == torch.float32
    torch.testing.assert_close(image_features.norm(dim=1), torch.ones(8))

    timm_clip.model.eval()
    preprocess = timm_clip.preprocess_cfg
    normalise = Normaliser(preprocess["mean"], preprocess["std"], torch.device("cpu"))
    with torch.no_grad():
        out = timm_clip.model(normalise(images), timm_clip.tokenizer(captions))
    torch.testing.assert_close(image_features, out["image_features"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text_features, out["text_features"], rtol=1e-5, atol=1e-6)
