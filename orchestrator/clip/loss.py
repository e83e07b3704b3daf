"""The contrastive losses of CLIP and SigLIP over the valid slots of a global batch.

A slot that is not valid (a pair that could not be decoded, or the padding of a short batch) is neither an anchor nor a
negative. All ranks pass the same number of slots, so a short last batch is padded with slots that are not valid.

With V the set of valid slots of all ranks and s_ij = scale * <image_i, text_j>:

- CLIP (Radford et al. 2021, as `open_clip.ClipLoss`):
  L = 1/(2|V|) * sum over i in V of [logsumexp over j in V of s_ij - s_ii] + [logsumexp over j in V of s_ji - s_ii]
- SigLIP (Zhai et al. 2023, normalised as `open_clip.SigLipLoss`), with z_ij = 1 for i = j and -1 otherwise:
  L = -1/|V| * sum over i, j in V of log sigmoid(z_ij * (s_ij + bias))

The logits of a batch can need more memory than the towers. `rows` computes that many rows of them at a time: the
backward pass computes them again, so the memory is that of one piece. Value and gradients stay the same but for the
order of float32 sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# the label that F.cross_entropy leaves out
IGNORED = -100


class MaskedClipLoss(nn.Module):
    """`open_clip.ClipLoss` with gathered gradients and a mask; with every slot valid it is the same function.

    DDP averages gradients over the ranks. That average is the gradient of the global L for both values of `local_loss`:

    - False: every rank computes all of L, and the backward pass of the gather sums the contributions of all ranks. The
      features of a rank get (number of ranks) * dL, and the average divides by the number of ranks.
    - True: rank r computes S_r, the sum over its own rows, divided by |V| of *all* ranks and multiplied by the number
      of ranks. The average over the ranks is L even when the ranks have different numbers of valid slots."""

    def __init__(self, *, local_loss: bool = False, rows: int | None = None, rank: int = 0, num_ranks: int = 1) -> None:
        super().__init__()
        self.local_loss, self.rows, self.rank, self.num_ranks = local_loss, rows, rank, num_ranks

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        valid: torch.Tensor,
        logit_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the global loss, a scalar equal on every rank; 0 with zero gradients if no slot is valid.

        image_features, text_features: unit-norm [b, dim]; valid: bool [b]; logit_scale: the factor, not its log."""
        all_valid = gather_valid(valid, self.num_ranks)
        # one gather for both towers: one collective is cheaper than two
        together = gather_rows(torch.cat([image_features, text_features], dim=1), self.num_ranks)
        all_images, all_texts = together.chunk(2, dim=1)
        labels = self._labels(valid, all_valid)
        if self.local_loss or self.rows is not None:
            own = (image_features, text_features) if self.local_loss else (all_images, all_texts)
            bias = self._column_bias(all_valid, logit_bias)
            both = [
                by_rows(_cross_entropy, self.rows, (logit_scale * features, labels), others.T, bias)
                for features, others in zip(own, (all_texts, all_images), strict=True)
            ]
        else:
            per_image = logit_scale * all_images @ all_texts.T
            per_image = per_image if logit_bias is None else per_image + logit_bias
            both = [_masked_cross_entropy(logits, labels, all_valid) for logits in (per_image, per_image.T)]
        loss = torch.stack(both).sum() / (2 * all_valid.sum().clamp(min=1))
        return as_global(loss, self.num_ranks) if self.local_loss else loss

    def _column_bias(self, all_valid: torch.Tensor, logit_bias: torch.Tensor | None) -> torch.Tensor:
        # added by the product itself: a pass over the logits to mask them would take as long as their softmax
        bias = torch.zeros((), device=all_valid.device) if logit_bias is None else logit_bias
        return torch.where(all_valid, bias, torch.finfo(torch.float32).min)

    def _labels(self, valid: torch.Tensor, all_valid: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(len(all_valid), device=valid.device)
        own = columns[self.rank * len(valid) :][: len(valid)]
        return torch.where(valid, own, IGNORED) if self.local_loss else torch.where(all_valid, columns, IGNORED)


class MaskedSigLipLoss(nn.Module):
    """`open_clip.SigLipLoss` with a mask. Each rank computes the rows of its own images against the texts of all ranks.

    The average of the gradients over the ranks is the gradient of the global L, even when the ranks have different
    numbers of valid slots."""

    def __init__(self, *, rows: int | None = None, rank: int = 0, num_ranks: int = 1) -> None:
        super().__init__()
        self.rows, self.rank, self.num_ranks = rows, rank, num_ranks

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        valid: torch.Tensor,
        logit_bias: torch.Tensor,
    ) -> torch.Tensor:
        """Return the global loss, a scalar equal on every rank; 0 with zero gradients if no slot is valid.

        image_features, text_features: unit-norm [b, dim]; valid: bool [b]; logit_scale: the factor, not its log."""
        all_valid = gather_valid(valid, self.num_ranks)
        all_texts = gather_rows(text_features, self.num_ranks)
        pairs = torch.arange(len(valid), device=valid.device) + self.rank * len(valid)
        own = (logit_scale * image_features, pairs, valid)
        terms = by_rows(_sigmoid_terms, self.rows, own, all_texts.T, logit_bias, all_valid)
        return as_global(-terms / all_valid.sum().clamp(min=1), self.num_ranks)


def by_rows(
    terms: Callable[..., torch.Tensor], rows: int | None, own: tuple[torch.Tensor, ...], *shared: torch.Tensor
) -> torch.Tensor:
    """Return terms(*own, *shared), a sum over the rows of `own`; computed `rows` rows at a time unless that is None."""
    if rows is None or rows >= len(own[0]):
        return terms(*own, *shared)
    pieces = zip(*(tensor.split(rows) for tensor in own), strict=True)
    # nothing here draws random numbers, and to save the state of a GPU's generator waits for it
    sums = [checkpoint(terms, *piece, *shared, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.stack(sums).sum()


def _cross_entropy(
    scaled: torch.Tensor, labels: torch.Tensor, others: torch.Tensor, column_bias: torch.Tensor
) -> torch.Tensor:
    logits = torch.addmm(column_bias, scaled, others)
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)


def _sigmoid_terms(
    scaled: torch.Tensor,
    pairs: torch.Tensor,
    valid: torch.Tensor,
    others: torch.Tensor,
    bias: torch.Tensor,
    all_valid: torch.Tensor,
) -> torch.Tensor:
    logits = scaled @ others + bias
    signs = torch.full_like(logits, -1.0)
    signs[torch.arange(len(pairs), device=pairs.device), pairs] = 1.0
    return F.logsigmoid(signs * logits).masked_fill(~(valid[:, None] & all_valid), 0.0).sum()


def _masked_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, valid_columns: torch.Tensor) -> torch.Tensor:
    # the lowest finite value, not -inf: its exponential is exactly 0 too, and a row of masked columns only gives no NaN
    masked = logits.masked_fill(~valid_columns, torch.finfo(logits.dtype).min)
    return F.cross_entropy(masked, labels, reduction="sum", ignore_index=IGNORED)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        everyone = own.new_empty(dist.get_world_size() * len(own), *own.shape[1:])
        _collective("all_gather_single", "all_gather_into_tensor")(everyone, own.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        _collective("reduce_scatter_single", "reduce_scatter_tensor")(own, gradient.contiguous())
        return own


def _collective(name: str, earlier_name: str) -> Callable[[torch.Tensor, torch.Tensor], object]:
    # torch 2.14 has new names and warns about the earlier ones
    return getattr(dist, name, None) or getattr(dist, earlier_name)


def gather_rows(own: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Return [num_ranks * b, dim], rank by rank, from each rank's [b, dim].

    The gradient of a row is the sum of the gradients that all ranks compute for it."""
    return own if num_ranks == 1 else _Gather.apply(own)


def gather_valid(valid: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Return bool [num_ranks * b], from each rank's bool [b]."""
    return gather_rows(valid.to(torch.uint8), num_ranks).bool()


def as_global(share: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Return the sum of all ranks' shares of a loss; DDP's average turns its gradients into those of the sum.

    The value is the sum over the ranks, for logging. The gradient is that of this rank's share times the number of
    ranks."""
    if num_ranks == 1:
        return share
    total = share.detach().clone()
    dist.all_reduce(total)
    scaled = share * num_ranks
    return scaled + (total - scaled.detach())
