"""One optimiser step of CLIP training: uint8 images in, tensors out, no data loading and no wait for the device.

The step is open_clip's (`train_one_epoch`): forward under autocast through the wrapped module, so that DDP sees it;
loss; backward; optional clipping of the gradient norm; AdamW; logit scale kept in [0, ln 100]. Two choices differ:
the loss is computed in float32 outside autocast (logits reach 100, where neighbouring bf16 numbers are 0.5 apart), and
slots can be masked. Batch-norm towers under DDP use the statistics of their own rank's slots, masked ones included,
and the running averages of rank 0, which DDP broadcasts: for them alone the number of workers matters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel

from orchestrator.clip import precision as precisions
from orchestrator.clip.loss import MaskedClipLoss
from orchestrator.clip.model import Model
from orchestrator.clip.pixels import Normaliser
from orchestrator.clip.precision import Precision

MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class Batch:
    """One rank's slots of a global batch; a slot that is not `valid` may hold anything finite, such as zeros."""

    images: torch.Tensor
    """uint8 [b, 3, h, w]"""
    texts: torch.Tensor
    """int64 [b, context]"""
    valid: torch.Tensor
    """bool [b]"""


@dataclass(frozen=True)
class StepMetrics:
    """Scalars left on the device: reading one waits for the step, so read them only when they are logged."""

    loss: torch.Tensor
    """of the global batch, the same on every rank"""
    logit_scale: torch.Tensor
    """the factor after the step, in [1, 100]"""
    grad_norm: torch.Tensor
    """of all gradients before clipping"""


class Learner:
    """A model with what it takes to improve it: `step` by `step`.

    `model` is an open_clip model that returns a dict (as `model.build` gives), on `device`, plain or wrapped in DDP.
    Errors: `ValueError` for a precision that the device lacks, or a model with a captioning decoder (CoCa), which the
    contrastive loss would leave untrained."""

    def __init__(
        self,
        *,
        model: Model | DistributedDataParallel,
        loss: MaskedClipLoss,
        optimiser: torch.optim.Optimizer,
        precision: Precision,
        grad_clip_norm: float | None,
        device: torch.device,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        precisions.check(precision, device)
        self.model = model
        self.loss = loss
        self.optimiser = optimiser
        self.precision = precision
        self.grad_clip_norm = grad_clip_norm
        self.device = device
        self.scaler = precisions.grad_scaler(precision, device)
        self.normalise = Normaliser(mean, std, device)
        if hasattr(self.unwrapped, "text_decoder"):
            raise ValueError("the model has a captioning decoder (CoCa), which contrastive training leaves untrained")

    @property
    def unwrapped(self) -> Model:
        """The open_clip model itself, without DDP around it."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def step(self, batch: Batch, lr: float) -> StepMetrics:
        """Take one optimiser step at learning rate `lr`; every rank calls it with as many slots."""
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._forward(batch)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        grad_norm = self._clip_gradients()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        log_scale = self.unwrapped.logit_scale
        with torch.no_grad():
            log_scale.clamp_(0, MAX_LOG_SCALE)
        return StepMetrics(loss=loss.detach(), logit_scale=log_scale.detach().exp(), grad_norm=grad_norm)

    def _forward(self, batch: Batch) -> torch.Tensor:
        images = self.normalise(batch.images)
        texts = batch.texts.to(self.device, non_blocking=True)
        with precisions.autocast(self.precision, self.device):
            out = self.model(images, texts)
        return self.loss(
            out["image_features"].float(),
            out["text_features"].float(),
            out["logit_scale"],
            batch.valid.to(self.device, non_blocking=True),
            out.get("logit_bias"),
        )

    def _clip_gradients(self) -> torch.Tensor:
        parameters = list(self.model.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        if self.grad_clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.grad_clip_norm, grad_norm)
        return grad_norm
