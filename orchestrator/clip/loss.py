"""The contrastive loss of CLIP over the valid slots of a global batch, as open_clip computes it (`ClipLoss`).

With V the set of valid slots of all ranks, s_ij = scale * <image_i, text_j>:
L = 1/(2|V|) * sum over i in V of [logsumexp over j in V of s_ij - s_ii] + [logsumexp over j in V of s_ji - s_ii].
A slot that is not valid (a pair that could not be decoded, or the padding of a short batch) is neither anchor nor
negative. Every rank passes the same number of slots, so a short last batch is padded with slots that are not valid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from orchestrator.clip.gather import as_global, gather_rows, gather_valid

IGNORED = -100


class MaskedClipLoss(nn.Module):
    """`open_clip.ClipLoss` with gathered gradients and a mask; with every slot valid it is the same function.

    What DDP's average of the gradients sees is the gradient of the global L for both settings of `local_loss`:

    - False: every rank computes all of L, and the backward pass of the gather sums over the ranks what each of them
      contributes, so a rank's features get (number of ranks) * dL, which the average undoes.
    - True: rank r computes S_r, the sum over its own rows, divided by |V| of *all* ranks and multiplied by the number
      of ranks: the average over ranks is L even when the ranks have different numbers of valid slots."""

    def __init__(self, *, local_loss: bool = False, rank: int = 0, num_ranks: int = 1) -> None:
        super().__init__()
        self.local_loss, self.rank, self.num_ranks = local_loss, rank, num_ranks

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        valid: torch.Tensor,
        logit_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The global loss, a scalar with the same value on every rank; 0 with zero gradients if no slot is valid.

        image_features, text_features: unit-norm [b, dim]; valid: bool [b]; logit_scale: the factor, not its log."""
        all_valid = gather_valid(valid, self.num_ranks)
        together = gather_rows(torch.cat([image_features, text_features], dim=1), self.num_ranks)
        all_images, all_texts = together.chunk(2, dim=1)
        bias = 0.0 if logit_bias is None else logit_bias
        if self.local_loss:
            per_image = logit_scale * image_features @ all_texts.T + bias
            per_text = logit_scale * text_features @ all_images.T + bias
        else:
            per_image = logit_scale * all_images @ all_texts.T + bias
            per_text = per_image.T
        labels = self._labels(valid, all_valid)
        both = (_masked_cross_entropy(logits, labels, all_valid) for logits in (per_image, per_text))
        loss = torch.stack(list(both)).sum() / (2 * all_valid.sum().clamp(min=1))
        return as_global(loss, self.num_ranks) if self.local_loss else loss

    def _labels(self, valid: torch.Tensor, all_valid: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(len(all_valid), device=valid.device)
        own = columns[self.rank * len(valid) :][: len(valid)]
        return torch.where(valid, own, IGNORED) if self.local_loss else torch.where(all_valid, columns, IGNORED)


def _masked_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, valid_columns: torch.Tensor) -> torch.Tensor:
    # the lowest finite value: its exponential is exactly 0 as that of -inf is, and a row of nothing else is no NaN
    masked = logits.masked_fill(~valid_columns, torch.finfo(logits.dtype).min)
    return F.cross_entropy(masked, labels, reduction="sum", ignore_index=IGNORED)
