"""The sigmoid loss of SigLIP (Zhai et al. 2023) over the valid slots of a global batch, normalised as open_clip does
(`SigLipLoss`). With V the set of valid slots of all ranks, z_ij = 1 for i = j and -1 otherwise:
L = -1/|V| * sum over i, j in V of log sigmoid(z_ij * (scale * <image_i, text_j> + bias)).

Each rank computes the rows of its own images against the texts of all, gathered with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from orchestrator.clip.gather import as_global, gather_rows, gather_valid


class MaskedSigLipLoss(nn.Module):
    """`open_clip.SigLipLoss` with a mask; the average of the gradients over the ranks is the gradient of the global L,
    even when the ranks have different numbers of valid slots."""

    def __init__(self, *, rank: int = 0, num_ranks: int = 1) -> None:
        super().__init__()
        self.rank, self.num_ranks = rank, num_ranks

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        valid: torch.Tensor,
        logit_bias: torch.Tensor,
    ) -> torch.Tensor:
        """The global loss, a scalar with the same value on every rank; 0 with zero gradients if no slot is valid.

        image_features, text_features: unit-norm [b, dim]; valid: bool [b]; logit_scale: the factor, not its log."""
        all_valid = gather_valid(valid, self.num_ranks)
        all_texts = gather_rows(text_features, self.num_ranks)
        logits = logit_scale * image_features @ all_texts.T + logit_bias
        own = torch.arange(len(valid), device=valid.device)
        signs = torch.full_like(logits, -1.0)
        signs[own, own + self.rank * len(valid)] = 1.0
        terms = F.logsigmoid(signs * logits).masked_fill(~(valid[:, None] & all_valid), 0.0)
        return as_global(-terms.sum() / all_valid.sum().clamp(min=1), self.num_ranks)
