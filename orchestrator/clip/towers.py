"""The two towers as one module, and captions without their padding.

`Towers` is what DDP and FSDP wrap and `torch.compile` compiles: floats and tokens in; unit-norm features, the logit
scale and the logit bias out, in float32 in every precision.

A causal text tower that is pooled at the end-of-text token gives the same features whatever follows that token. So
nothing after the longest caption of a batch has to be computed. open_clip's `encode_text` needs the full context (its
mask and positions are not cut), so its parts are called here instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import nn

from orchestrator.clip.model import Model
from orchestrator.clip.patch_dropout import KeyedPatchDropout

# an nn.Module with the parts of open_clip's TextTransformer
TextTower: TypeAlias = Any
# lengths are multiples of 8: a compiled tower is compiled once per length, and matrix units prefer multiples of 8
LENGTH_STEP = 8


class Outputs(NamedTuple):
    """Unit-norm float32 features [b, dim], the logit scale as a factor, and the logit bias if the model has one."""

    images: torch.Tensor
    texts: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None


class Towers(nn.Module):
    """An open_clip model with the inputs and outputs of a training step."""

    def __init__(self, model: Model, *, trim_captions: bool) -> None:
        super().__init__()
        self.model = model
        self.end_of_text = end_of_text(model) if trim_captions else None
        dropouts = (module for module in model.modules() if isinstance(module, KeyedPatchDropout))
        # in a tuple: as a plain attribute, torch would register the module a second time, under a second name
        self.patch_dropouts = tuple(dropouts)

    def trimmed(self, texts: torch.Tensor) -> torch.Tensor:
        """Return the captions as `forward` expects them, on the CPU: as short as the text tower allows."""
        return texts if self.end_of_text is None else trim_texts(texts, self.end_of_text)

    def forward(self, images: torch.Tensor, texts: torch.Tensor, kept: torch.Tensor | None = None) -> Outputs:
        """Return the features of a batch.

        images: float [b, 3, h, w]; texts: int64 [b, length]; kept: the patches to keep, int64 [b, num_kept], needed
        with patch dropout only (see `KeyedPatchDropout.choose`)."""
        for dropout in self.patch_dropouts:
            dropout.kept = kept
        if self.end_of_text is None:
            text_features = self.model.encode_text(texts)
        else:
            text_features = encode_trimmed(self.model, texts, self.end_of_text)
        bias = self.model.logit_bias
        return Outputs(
            images=F.normalize(self.model.encode_image(images).float(), dim=-1),
            texts=F.normalize(text_features.float(), dim=-1),
            scale=self.model.logit_scale.exp(),
            # not the parameter itself: DDP and FSDP put hooks on outputs, and these would stay on the parameter
            bias=None if bias is None else bias.clone(),
        )


@dataclass(frozen=True)
class EndOfText:
    """The token at which a causal tower is pooled: the largest (`argmax`), or the first `eos_id` (`eos`)."""

    pool_type: str
    eos_id: int

    def positions(self, texts: torch.Tensor) -> torch.Tensor:
        """Return int64 [b], from int64 [b, context]; 0 for a text without that token, as open_clip does."""
        wanted = texts if self.pool_type == "argmax" else (texts == self.eos_id).int()
        return wanted.argmax(dim=-1)


def end_of_text(model: Model) -> EndOfText | None:
    """Return where a model's text tower is pooled, or None for a tower that needs the full context.

    A tower needs it if it is not causal, attends to a class token after the padding, or is pooled elsewhere."""
    if isinstance(model, CLIP):
        end = EndOfText(model.text_pool_type, model.text_eos_id)
    elif isinstance(model.text, TextTransformer) and model.text.cls_emb is None:
        end = EndOfText(model.text.pool_type, model.text.eos_id)
    else:
        return None
    is_causal = text_tower(model).attn_mask is not None
    return end if is_causal and end.pool_type in ("argmax", "eos") else None


def text_tower(model: Model) -> TextTower:
    """Return the module that holds the parts of the text tower; for a `CLIP`, the model itself."""
    return model if isinstance(model, CLIP) else model.text


def trim_texts(texts: torch.Tensor, end: EndOfText) -> torch.Tensor:
    """Return int64 [b, length] from int64 [b, context]: up to the last end of text, rounded up to a multiple of 8.

    Call it with captions on the CPU: on a GPU, `int()` would wait for the device."""
    longest = int(end.positions(texts).max()) + 1
    short = texts[:, : -(-longest // LENGTH_STEP) * LENGTH_STEP].contiguous()
    # page-locked again: a copy to a GPU from other memory blocks
    return short.pin_memory() if texts.is_pinned() else short


def encode_trimmed(model: Model, texts: torch.Tensor, end: EndOfText) -> torch.Tensor:
    """Return what `model.encode_text` gives for the full context, [b, dim], from int64 [b, length] of any length."""
    tower, length = text_tower(model), texts.shape[1]
    tokens = tower.token_embedding(texts) + tower.positional_embedding[:length]
    tokens = tower.transformer(tokens, attn_mask=tower.attn_mask[:length, :length])
    pooled = tower.ln_final(text_global_pool(tokens, texts, end.pool_type, eos_token_id=end.eos_id))
    if tower.text_projection is None:
        return pooled
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(pooled)
    return pooled @ tower.text_projection
