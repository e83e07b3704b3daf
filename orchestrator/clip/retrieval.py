"""Image-text retrieval on pairs: recall@k, the share of queries whose own partner is among the k nearest."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from orchestrator.clip.ranks import TILE_ROWS, target_ranks


def recall_at_k(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    ks: Sequence[int] = (1, 5, 10),
    *,
    tile_rows: int = TILE_ROWS,
) -> dict[str, float]:
    """`image_to_text_recall_at_K` and `text_to_image_recall_at_K`, in [0, 1]; row i of both [n, dim] is pair i.

    Equal scores rank in row order (see `ranks`). Errors: `ValueError` for unequal or no rows, or diverged features."""
    if len(image_features) != len(text_features) or len(image_features) == 0:
        raise ValueError(
            f"got {len(image_features)} images and {len(text_features)} texts: expected pairs, at least one"
        )
    own = torch.arange(len(image_features), device=image_features.device)
    ways = {
        "image_to_text": target_ranks(image_features, text_features, own, tile_rows=tile_rows),
        "text_to_image": target_ranks(text_features, image_features, own, tile_rows=tile_rows),
    }
    return {f"{way}_recall_at_{k}": (ranks < k).double().mean().item() for way, ranks in ways.items() for k in ks}
