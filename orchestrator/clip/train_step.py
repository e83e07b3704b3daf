"""One optimiser step of CLIP training: uint8 images in, tensors out, no data loading and no wait for the device.

The step is open_clip's (`train_one_epoch`): forward under autocast through the wrapped module, so that DDP sees it;
loss; backward; optional clipping of the gradient norm; AdamW; logit scale kept in [1, 100]. Two choices differ: the
loss is computed in float32 outside autocast (logits reach 100, where neighbouring bf16 numbers are 0.5 apart), and
slots can be masked. Batch-norm towers under DDP use the statistics of their own rank's slots, masked ones included,
and the running averages of rank 0, which DDP broadcasts: for them alone the number of workers matters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from orchestrator.clip import gradients, locking, parallel, patch_dropout, randomness, snapshot
from orchestrator.clip import precision as precisions
from orchestrator.clip.accumulation import backward_in_chunks
from orchestrator.clip.ema import WeightAverage
from orchestrator.clip.loss import MaskedClipLoss
from orchestrator.clip.model import Clip
from orchestrator.clip.optimiser import adamw
from orchestrator.clip.pixels import Normaliser
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.siglip import MaskedSigLipLoss
from orchestrator.clip.towers import Outputs, Towers


@dataclass(frozen=True)
class Batch:
    """One rank's slots of a global batch; a slot that is not `valid` may hold anything finite, such as zeros."""

    images: torch.Tensor
    """uint8 [b, 3, h, w]"""
    texts: torch.Tensor
    """int64 [b, context], on the CPU"""
    valid: torch.Tensor
    """bool [b]"""
    keys: torch.Tensor | None = None
    """int64 [b], names each pair within the whole run: patch dropout is keyed by it, nothing else needs it"""


@dataclass(frozen=True)
class StepMetrics:
    """Scalars left on the device: reading one waits for the step, so read them only when they are logged."""

    loss: torch.Tensor
    """of the global batch, the same on every rank"""
    logit_scale: torch.Tensor
    """the factor after the step, in [1, max_logit_scale]"""
    grad_norm: torch.Tensor
    """of all gradients before clipping"""


@dataclass(frozen=True)
class _Chunk:
    images: torch.Tensor
    texts: torch.Tensor
    kept: torch.Tensor | None


class Learner:
    """A model with what it takes to improve it, `step` by `step`, on one rank of `num_ranks`.

    The model of `clip` becomes the learner's: it is moved to the device, locked, sharded. With more than one rank the
    default process group is up, and every rank makes its learner from the same weights. Errors: `ValueError`, one
    line, for a recipe that does not go together, or that the model or the device cannot follow."""

    def __init__(self, clip: Clip, recipe: Recipe, *, device: torch.device, rank: int = 0, num_ranks: int = 1) -> None:
        check(clip, recipe, device)
        self.clip, self.recipe, self.device, self.rank = clip, recipe, device, rank
        self.num_ranks = num_ranks
        self.bones = snapshot.skeleton(clip.model)
        self.model = clip.model.to(device)
        locking.lock(self.model, recipe)
        self.frozen_norms = locking.frozen_batch_norms(self.model, recipe)
        if recipe.grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.patch_dropout = patch_dropout.install(self.model.visual, recipe.patch_dropout)
        self.towers = Towers(self.model, trim_captions=recipe.trim_captions)
        self.draws = randomness.draws(self.model)
        if recipe.compile:
            parallel.compile_towers(self.towers, num_ranks=num_ranks)
        self.wrapped = parallel.wrap(self.towers, strategy=recipe.parallel, num_ranks=num_ranks)
        # as they are now: sharding has replaced the parameters
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimiser = adamw(self.model, recipe)
        self.average = None if recipe.ema_decay is None else WeightAverage(self.model, recipe.ema_decay)
        self.loss = _loss(recipe, rank, num_ranks)
        self.scaler = precisions.grad_scaler(recipe.precision, device)
        self.normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def step(self, batch: Batch, *, lr: float, step: int) -> StepMetrics:
        """Take optimiser step number `step`, from 0, at learning rate `lr`; every rank calls it with as many slots."""
        self.wrapped.train()
        for norm in self.frozen_norms:
            norm.eval()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._backward(batch, step)
        self.scaler.unscale_(self.optimiser)
        parallel.average_plain_gradients(self.wrapped, self.num_ranks)
        grad_norm = gradients.total_norm(self.weights)
        if self.recipe.grad_clip_norm is not None:
            gradients.clip(self.weights, self.recipe.grad_clip_norm, grad_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        log_scale = self.model.logit_scale.detach()
        log_scale.clamp_(0, math.log(self.recipe.max_logit_scale))
        if self.average is not None:
            self.average.update(step)
        self._look_at(loss, grad_norm, step)
        return StepMetrics(loss=loss, logit_scale=log_scale.exp(), grad_norm=grad_norm)

    def first_bad_step(self) -> int | None:
        """The first step since the start (or `restore`) whose loss or gradient norm was not finite. Waits for the
        device. Under fp16 the scaler skips a step whose gradients overflow: only the loss counts there."""
        step = int(self.bad_step)
        return None if step < 0 else step

    def state(self) -> dict[str, Any] | None:
        """A copy, on the CPU, of all that the next step needs: plain data and tensors under the parameters' names, for
        `restore` on any number of ranks. Rank 0 gets it, the others None; under FSDP every rank must call it."""
        sharded = self.recipe.parallel == "fsdp" and self.num_ranks > 1
        if self.rank != 0 and not sharded:
            return None
        saved = {
            "model": snapshot.model_state(self.model),
            "optimiser": snapshot.optimiser_state(self.model, self.optimiser),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.average is None else self.average.weights(),
        }
        return saved if self.rank == 0 else None

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `state` gave; every rank calls it with the same."""
        snapshot.restore_model(self.model, saved["model"])
        snapshot.restore_optimiser(self.model, self.optimiser, saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.restore(saved["ema"])
        self.bad_step.fill_(-1)

    def export(self) -> Clip:
        """The model to save and to evaluate, a plain copy on the CPU: the averaged weights where there is an average.
        Under FSDP every rank must call it, and gets it."""
        averages = {} if self.average is None else self.average.weights()
        return replace(self.clip, model=snapshot.filled(self.bones, self.model, averages))

    def _backward(self, batch: Batch, step: int) -> torch.Tensor:
        chunks = self._chunks(batch)
        valid = batch.valid.to(self.device, non_blocking=True)

        def forward(index: int) -> Outputs:
            chunk = chunks[index]
            with self._randomness(step, index), precisions.autocast(self.recipe.precision, self.device):
                return self.wrapped(self.normalise(chunk.images), chunk.texts, chunk.kept)

        def loss(outputs: Outputs) -> torch.Tensor:
            return self.loss(outputs.images, outputs.texts, outputs.scale, valid, outputs.bias)

        def backward(value: torch.Tensor) -> None:
            self.scaler.scale(value).backward()

        if len(chunks) > 1:
            no_sync = partial(parallel.no_sync, self.wrapped)
            return backward_in_chunks(len(chunks), forward=forward, loss=loss, backward=backward, no_sync=no_sync)
        value = loss(forward(0))
        backward(value)
        return value.detach()

    def _chunks(self, batch: Batch) -> list[_Chunk]:
        size = -(-len(batch.valid) // self.recipe.accumulation)
        images = batch.images.to(self.device, non_blocking=True).split(size)
        texts = self.towers.trimmed(batch.texts).to(self.device, non_blocking=True).split(size)
        if self.patch_dropout is None:
            return [_Chunk(some, captions, None) for some, captions in zip(images, texts, strict=True)]
        assert batch.keys is not None, "patch dropout needs the keys of the pairs"
        keys = batch.keys.to(self.device, non_blocking=True)
        kept = self.patch_dropout.choose(self.recipe.seed, keys).split(size)
        return [_Chunk(*parts) for parts in zip(images, texts, kept, strict=True)]

    @contextmanager
    def _randomness(self, step: int, chunk: int) -> Iterator[None]:
        if not self.draws:
            yield
            return
        with randomness.seeded(self.device, self.recipe.seed, step, self.rank, chunk):
            yield

    def _look_at(self, loss: torch.Tensor, grad_norm: torch.Tensor, step: int) -> None:
        bad = ~torch.isfinite(loss)
        if self.recipe.precision != "fp16":
            bad |= ~torch.isfinite(grad_norm)
        self.bad_step.masked_fill_(bad & (self.bad_step < 0), step)


def check(clip: Clip, recipe: Recipe, device: torch.device) -> None:
    """Errors: `ValueError` for a precision that device or strategy lacks, a model with a captioning decoder (CoCa),
    which the contrastive loss would leave untrained, or SigLIP without a bias."""
    precisions.check(recipe.precision, device)
    if recipe.precision == "fp16" and recipe.parallel == "fsdp":
        raise ValueError("precision fp16 does not go with fsdp: use bf16, or parallel ddp")
    if hasattr(clip.model, "text_decoder"):
        raise ValueError("the model has a captioning decoder (CoCa), which contrastive training leaves untrained")
    if recipe.loss == "siglip" and clip.model.logit_bias is None:
        raise ValueError("loss siglip needs a model with a logit bias: give its config an init_logit_bias, say -10")


def _loss(recipe: Recipe, rank: int, num_ranks: int) -> MaskedClipLoss | MaskedSigLipLoss:
    if recipe.loss == "siglip":
        return MaskedSigLipLoss(rank=rank, num_ranks=num_ranks)
    return MaskedClipLoss(local_loss=recipe.local_loss, rank=rank, num_ranks=num_ranks)
