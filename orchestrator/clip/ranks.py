"""The rank of the right answer, exactly, in tiles: how many of the gallery are closer to a query than its target.

Equal ones count when they stand before the target, so a model that gives every pair the same score is right as often
as chance. Scores are dot products in float64 rounded to float32: what is equal stays equal whatever the tiling."""

from __future__ import annotations

import torch

TILE_ROWS = 2048


def target_ranks(
    queries: torch.Tensor, gallery: torch.Tensor, targets: torch.Tensor, *, tile_rows: int = TILE_ROWS
) -> torch.Tensor:
    """int64 [n], 0 is best, for queries [n, dim], gallery [m, dim] and targets int64 [n] (rows of the gallery).

    Memory: `tile_rows` squared scores at a time. Errors: `ValueError` for NaN or infinite features."""
    for features in (queries, gallery):
        if not torch.isfinite(features).all():
            raise ValueError("features hold NaN or infinite values: the model has diverged")
    ranks = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for rows, wanted, out in zip(
        queries.split(tile_rows), targets.split(tile_rows), ranks.split(tile_rows), strict=True
    ):
        rows = rows.double()
        own = (rows * gallery[wanted].double()).sum(dim=1).float()[:, None]
        for start in range(0, len(gallery), tile_rows):
            tile = gallery[start : start + tile_rows]
            scores = (rows @ tile.double().T).float()
            earlier = torch.arange(start, start + len(tile), device=tile.device) < wanted[:, None]
            out += ((scores > own) | (scores == own) & earlier).sum(dim=1)
    return ranks
