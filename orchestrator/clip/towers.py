"""The two towers as one module, which is what DDP and FSDP wrap and `torch.compile` compiles: floats and tokens in,
unit-norm features and the logit scale out, in float32 whatever the towers compute in."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from orchestrator.clip import captions
from orchestrator.clip.model import Model
from orchestrator.clip.patch_dropout import KeyedPatchDropout


class Outputs(NamedTuple):
    """Unit-norm float32 features [b, dim], the logit scale as a factor, and the logit bias where there is one."""

    images: torch.Tensor
    texts: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None


class Towers(nn.Module):
    """An open_clip model, called as training calls it."""

    def __init__(self, model: Model, *, trim_captions: bool) -> None:
        super().__init__()
        self.model = model
        self.end_of_text = captions.end_of_text(model) if trim_captions else None
        dropouts = (module for module in model.modules() if isinstance(module, KeyedPatchDropout))
        # in a tuple: as an attribute it would be a second name of a module of `model`
        self.patch_dropouts = tuple(dropouts)

    def trimmed(self, texts: torch.Tensor) -> torch.Tensor:
        """The captions as `forward` wants them, on the CPU: as short as the text tower allows."""
        return texts if self.end_of_text is None else captions.trimmed(texts, self.end_of_text)

    def forward(self, images: torch.Tensor, texts: torch.Tensor, kept: torch.Tensor | None = None) -> Outputs:
        """images: float [b, 3, h, w]; texts: int64 [b, length]; kept: the patches to keep, int64 [b, num_kept], where
        there is patch dropout (see `KeyedPatchDropout.choose`)."""
        for dropout in self.patch_dropouts:
            dropout.kept = kept
        if self.end_of_text is None:
            text_features = self.model.encode_text(texts)
        else:
            text_features = captions.encode(self.model, texts, self.end_of_text)
        bias = self.model.logit_bias
        return Outputs(
            images=F.normalize(self.model.encode_image(images).float(), dim=-1),
            texts=F.normalize(text_features.float(), dim=-1),
            scale=self.model.logit_scale.exp(),
            # a parameter itself must not be an output: wrappers hang hooks on what they return, for good
            bias=None if bias is None else bias.clone(),
        )
