"""Patch dropout (FLIP, Li et al. 2023): a vision transformer trains on a random part of each image's patches.

Which patches stay is a function of (seed, key of the pair, patch) only: those with the smallest hashes. So they are the
same for any number of ranks and chunks and after any restart. The number of patches that stay is that of open_clip's
and timm's modules, which these replace. Class tokens always stay."""

from __future__ import annotations

from typing import Any, TypeAlias

import timm.models.eva
import timm.models.vision_transformer
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import PatchDropout, VisionTransformer
from torch import nn

from orchestrator.clip.randomness import mix

# an nn.Module with the attributes that open_clip or timm adds
ImageTower: TypeAlias = Any


class KeyedPatchDropout(nn.Module):
    """Keep the patches in `kept`, int64 [b, num_kept], in training; keep all of them in evaluation."""

    def __init__(self, *, share: float, num_patches: int, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_patches = num_patches
        self.num_kept = max(1, int(num_patches * (1 - share)))
        self.num_prefix_tokens = num_prefix_tokens
        self.kept: torch.Tensor | None = None

    def choose(self, seed: int, keys: torch.Tensor) -> torch.Tensor:
        """Return the patches that stay, int64 [b, num_kept], for the keys of b pairs, int64 [b]."""
        patches = torch.arange(self.num_patches, device=keys.device)
        return mix(seed, keys[:, None], patches).topk(self.num_kept, dim=1, largest=False).indices

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return [b, prefix + num_kept, width] from [b, prefix + num_patches, width]."""
        if not self.training:
            return tokens
        assert self.kept is not None, "patch dropout needs the keys of the pairs"
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        width = tokens.shape[-1]
        return torch.cat([prefix, patches.gather(1, self.kept[:, :, None].expand(-1, -1, width))], dim=1)


class KeyedPatchDropoutWithIndices(KeyedPatchDropout):
    """The same for timm's Eva towers, which also need the indices of the kept patches, for their position rotation."""

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:  # type: ignore[override]
        """Return the tokens that stay and the indices of their patches (None: all)."""
        return super().forward(tokens), self.kept if self.training else None


def install(visual: ImageTower, share: float) -> KeyedPatchDropout | None:
    """Put a dropout of `share` of the patches into an image tower and return it; None if nothing is dropped.

    A share of 0 uses the share in the tower's own configuration. Errors: `ValueError` for a tower without patches."""
    trunk: ImageTower = visual.trunk if isinstance(visual, TimmModel) else visual
    own = trunk.patch_dropout if isinstance(trunk, VisionTransformer) else getattr(trunk, "patch_drop", None)
    share = share or getattr(own, "prob", 0.0)
    if share == 0:
        return None
    if isinstance(trunk, VisionTransformer):
        num_patches = trunk.grid_size[0] * trunk.grid_size[1]
        num_prefix_tokens = 1 if not isinstance(own, PatchDropout) or own.exclude_first_token else 0
        trunk.patch_dropout = KeyedPatchDropout(
            share=share, num_patches=num_patches, num_prefix_tokens=num_prefix_tokens
        )
        return trunk.patch_dropout
    if isinstance(trunk, timm.models.vision_transformer.VisionTransformer):
        kind = KeyedPatchDropout
    elif isinstance(trunk, timm.models.eva.Eva):
        kind = KeyedPatchDropoutWithIndices
    else:
        raise ValueError(
            f"patch dropout {share:g} needs a vision transformer, the image tower is a {type(trunk).__name__}: "
            "set it to 0 or choose another model"
        )
    dropout = kind(share=share, num_patches=trunk.patch_embed.num_patches, num_prefix_tokens=trunk.num_prefix_tokens)
    trunk.patch_drop = dropout
    return dropout
