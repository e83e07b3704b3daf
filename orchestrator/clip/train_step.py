"""One optimiser step of CLIP training: uint8 images in, tensors out, without data loading or waiting for the device.

The step is open_clip's (`train_one_epoch`): forward under autocast through the wrapped module; loss; backward; optional
clipping of the gradient norm; AdamW; the logit scale is clamped to [1, 100]. Two things differ: the loss is computed in
float32 outside autocast (logits reach 100, where neighbouring bf16 numbers are 0.5 apart), and slots can be masked.

Batch-norm towers under DDP use the statistics of their own rank's slots, including masked ones, and the running
averages of rank 0, which DDP broadcasts. Only for such towers do results depend on the number of workers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from orchestrator.clip import locking, optimiser, parallel, patch_dropout, randomness, snapshot
from orchestrator.clip import precision as precisions
from orchestrator.clip.accumulation import backward_in_chunks
from orchestrator.clip.loss import MaskedClipLoss, MaskedSigLipLoss
from orchestrator.clip.model import Clip
from orchestrator.clip.preprocessing import Normaliser
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.towers import Outputs, Towers


@dataclass(frozen=True)
class Batch:
    """One rank's slots of a global batch; a slot that is not `valid` may hold any finite values, such as zeros."""

    images: torch.Tensor
    """uint8 [b, 3, h, w]"""
    texts: torch.Tensor
    """int64 [b, context], on the CPU"""
    valid: torch.Tensor
    """bool [b]"""
    keys: torch.Tensor | None = None
    """int64 [b], unique for each pair of the whole run; only patch dropout uses it"""


@dataclass(frozen=True)
class StepMetrics:
    """Scalars on the device. Reading one waits for the step, so read them only for logging."""

    loss: torch.Tensor
    """of the global batch, equal on every rank"""
    logit_scale: torch.Tensor
    """the factor after the step, in [1, max_logit_scale]"""
    grad_norm: torch.Tensor
    """of all gradients before clipping"""


class ReadMetrics(NamedTuple):
    """Metrics of a step as numbers, and the first step with a loss or gradient norm that is not finite (None: none)."""

    loss: float
    logit_scale: float
    grad_norm: float
    bad_step: int | None


@dataclass(frozen=True)
class _Chunk:
    images: torch.Tensor
    texts: torch.Tensor
    kept: torch.Tensor | None


class TrainStep:
    """A model, its optimiser and all other state of training, on one rank of `num_ranks`; `run` takes one step.

    It changes the model of `clip`: it moves it to the device, locks and shards it. With more than one rank, the default
    process group must be up and every rank must start from the same weights. Errors: `ValueError`, one line, for a
    recipe with settings that exclude each other, or that the model or the device does not support."""

    def __init__(self, clip: Clip, recipe: Recipe, *, device: torch.device, rank: int = 0, num_ranks: int = 1) -> None:
        check(clip, recipe, device)
        self.clip, self.recipe, self.device, self.rank = clip, recipe, device, rank
        self.num_ranks = num_ranks
        self.empty_model = snapshot.skeleton(clip.model)
        self.model = clip.model.to(device)
        locking.lock(self.model, recipe)
        self.frozen_norms = locking.frozen_batch_norms(self.model, recipe)
        if recipe.grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.patch_dropout = patch_dropout.install(self.model.visual, recipe.patch_dropout)
        self.towers = Towers(self.model, trim_captions=recipe.trim_captions)
        self.draws = randomness.draws(self.model)
        self.uses_tf32 = precisions.uses_tf32(recipe, device)
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = self.uses_tf32
            # the shapes do not change, so the fastest algorithm is searched once; without effect on transformers
            torch.backends.cudnn.benchmark = locking.uses_batch_statistics(self.model, recipe)
        if recipe.compile:
            parallel.compile_towers(self.towers, num_ranks=num_ranks)
        self.wrapped = parallel.wrap(
            self.towers, strategy=recipe.parallel, num_ranks=num_ranks, precision=recipe.precision
        )
        # after `wrap`: sharding has replaced the parameters
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimiser = optimiser.adamw(self.model, recipe)
        self.average = None if recipe.ema_decay is None else optimiser.WeightAverage(self.model, recipe.ema_decay)
        self.loss = _loss(recipe, rank, num_ranks)
        self.scaler = precisions.grad_scaler(recipe.precision, device)
        self.normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def run(self, batch: Batch, *, lr: float, step: int) -> StepMetrics:
        """Take optimiser step number `step`, from 0, at learning rate `lr`.

        Every rank calls it with the same number of slots."""
        self.wrapped.train()
        for norm in self.frozen_norms:
            norm.eval()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._backward(batch, step)
        self.scaler.unscale_(self.optimiser)
        parallel.average_plain_gradients(self.wrapped, self.num_ranks)
        grad_norm = optimiser.total_norm(self.weights)
        if self.recipe.grad_clip_norm is not None:
            optimiser.clip_gradients(self.weights, self.recipe.grad_clip_norm, grad_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        log_scale = self.model.logit_scale.detach()
        log_scale.clamp_(0, math.log(self.recipe.max_logit_scale))
        if self.average is not None:
            self.average.update(step)
        self._remember_bad_step(loss, grad_norm, step)
        return StepMetrics(loss=loss, logit_scale=log_scale.exp(), grad_norm=grad_norm)

    def read(self, metrics: StepMetrics) -> ReadMetrics:
        """Wait for the step and return its metrics; one transfer from the device."""
        scalars = (metrics.loss, metrics.logit_scale, metrics.grad_norm, self.bad_step)
        # float64 holds float32 and any number of steps exactly
        loss, scale, norm, bad = torch.stack([scalar.to(torch.float64) for scalar in scalars]).tolist()
        return ReadMetrics(loss, scale, norm, None if bad < 0 else int(bad))

    def first_bad_step(self) -> int | None:
        """Return the first step since the start (or `restore`) with a loss or gradient norm that is not finite.

        It waits for the device. Under fp16 the scaler skips steps with gradients that overflow, so only the loss
        counts."""
        step = int(self.bad_step)
        return None if step < 0 else step

    def state(self) -> dict[str, Any] | None:
        """Return a copy, on the CPU, of all state that the next step needs, for `restore` on any number of ranks.

        It is plain data and tensors under the parameters' names. Rank 0 gets it, other ranks get None; under FSDP
        every rank must call it."""
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
        """Continue from what `state` returned; every rank calls it with the same state."""
        snapshot.restore_model(self.model, saved["model"])
        snapshot.restore_optimiser(self.model, self.optimiser, saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.restore(saved["ema"])
        self.bad_step.fill_(-1)

    def share_buffers(self) -> None:
        """Make `export` return the same model on every rank; every rank calls it."""
        parallel.share_buffers(self.model, self.num_ranks)

    def export(self) -> Clip:
        """Return the model to save and to evaluate: a plain copy on the CPU, with averaged weights if there are any.

        Under FSDP every rank must call it and gets the copy."""
        averages = {} if self.average is None else self.average.weights()
        return replace(self.clip, model=snapshot.filled(self.empty_model, self.model, averages))

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

        if len(chunks) > 1 or self.uses_tf32:
            no_sync = partial(parallel.no_sync, self.wrapped)
            return backward_in_chunks(
                len(chunks), forward=forward, loss=loss, backward=backward, no_sync=no_sync, in_towers=self._in_towers
            )
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

    def _in_towers(self) -> AbstractContextManager[None]:
        return precisions.matmuls("high") if self.uses_tf32 else nullcontext()

    @contextmanager
    def _randomness(self, step: int, chunk: int) -> Iterator[None]:
        if not self.draws:
            yield
            return
        with randomness.seeded(self.device, self.recipe.seed, step, self.rank, chunk):
            yield

    def _remember_bad_step(self, loss: torch.Tensor, grad_norm: torch.Tensor, step: int) -> None:
        bad = ~torch.isfinite(loss)
        if self.recipe.precision != "fp16":
            bad |= ~torch.isfinite(grad_norm)
        self.bad_step.masked_fill_(bad & (self.bad_step < 0), step)


def check(clip: Clip, recipe: Recipe, device: torch.device) -> None:
    """Check that recipe, model and device fit together.

    Errors: `ValueError` for a precision that the device or the strategy does not support, a model with a captioning
    decoder (CoCa), which a contrastive loss does not train, or SigLIP without a bias."""
    precisions.check(recipe.precision, device)
    if recipe.precision == "fp16" and recipe.parallel == "fsdp":
        raise ValueError("precision fp16 does not work with fsdp: use bf16, or parallel ddp")
    if hasattr(clip.model, "text_decoder"):
        raise ValueError("the model has a captioning decoder (CoCa), which contrastive training does not train")
    if recipe.loss == "siglip" and clip.model.logit_bias is None:
        raise ValueError("loss siglip needs a model with a logit bias: give its config an init_logit_bias, say -10")


def _loss(recipe: Recipe, rank: int, num_ranks: int) -> MaskedClipLoss | MaskedSigLipLoss:
    if recipe.loss == "siglip":
        return MaskedSigLipLoss(rows=recipe.loss_rows, rank=rank, num_ranks=num_ranks)
    return MaskedClipLoss(local_loss=recipe.local_loss, rows=recipe.loss_rows, rank=rank, num_ranks=num_ranks)
