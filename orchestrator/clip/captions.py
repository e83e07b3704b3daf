"""Captions without their padding. A causal text tower that is pooled at the end-of-text token gives the same features
whatever stands behind that token, so nothing behind the longest caption of a batch has to be computed.

open_clip's `encode_text` insists on the full context (its mask and positions are not cut), so its pieces are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from open_clip import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import nn

from orchestrator.clip.model import Model

# an nn.Module with the pieces of open_clip's TextTransformer
TextTower: TypeAlias = Any
# few distinct lengths: a compiled tower is compiled for few of them, and matrix units like multiples of 8
LENGTH_STEP = 8


@dataclass(frozen=True)
class EndOfText:
    """Where a causal tower is pooled: at the largest token (`argmax`), or at the first `eos_id` (`eos`)."""

    pool_type: str
    eos_id: int

    def positions(self, texts: torch.Tensor) -> torch.Tensor:
        """int64 [b], from int64 [b, context]; 0 where there is no end, which is where open_clip pools then too."""
        wanted = texts if self.pool_type == "argmax" else (texts == self.eos_id).int()
        return wanted.argmax(dim=-1)


def end_of_text(model: Model) -> EndOfText | None:
    """How a model's text tower is pooled, or None for one that needs the full context: it looks ahead, attends to a
    class token behind the padding, or is pooled elsewhere."""
    if isinstance(model, CLIP):
        end = EndOfText(model.text_pool_type, model.text_eos_id)
    elif isinstance(model.text, TextTransformer) and model.text.cls_emb is None:
        end = EndOfText(model.text.pool_type, model.text.eos_id)
    else:
        return None
    is_causal = text_tower(model).attn_mask is not None
    return end if is_causal and end.pool_type in ("argmax", "eos") else None


def text_tower(model: Model) -> TextTower:
    """The module with the pieces of the text tower, which a `CLIP` holds itself."""
    return model if isinstance(model, CLIP) else model.text


def trimmed(texts: torch.Tensor, end: EndOfText) -> torch.Tensor:
    """int64 [b, length] from int64 [b, context]: up to the last end of text, rounded up to a multiple of 8.

    On the CPU, where captions come from: on a device it would wait for it."""
    longest = int(end.positions(texts).max()) + 1
    short = texts[:, : -(-longest // LENGTH_STEP) * LENGTH_STEP].contiguous()
    # page-locked again: from other memory the copy to a GPU waits for it
    return short.pin_memory() if texts.is_pinned() else short


def encode(model: Model, texts: torch.Tensor, end: EndOfText) -> torch.Tensor:
    """What `model.encode_text` gives for the full context, [b, dim], from int64 [b, length] of any length."""
    tower, length = text_tower(model), texts.shape[1]
    tokens = tower.token_embedding(texts) + tower.positional_embedding[:length]
    tokens = tower.transformer(tokens, attn_mask=tower.attn_mask[:length, :length])
    pooled = tower.ln_final(text_global_pool(tokens, texts, end.pool_type, eos_token_id=end.eos_id))
    if tower.text_projection is None:
        return pooled
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(pooled)
    return pooled @ tower.text_projection
