"""open_clip_train's own loop on pairs in memory: `train_one_epoch`, with the optimiser that its `main` builds."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from open_clip import ClipLoss
from open_clip_train.train import train_one_epoch

from orchestrator.clip.model import Clip
from orchestrator.clip.preprocessing import Normaliser
from orchestrator.clip.train_step import Batch
from tests.gpu.lab import Lab


@dataclass
class _SameBatch:
    """A loader that gives one batch again and again, as `open_clip_train` reads one."""

    pair: tuple[torch.Tensor, torch.Tensor]
    num_batches: int = 1

    @property
    def num_samples(self) -> int:
        return self.num_batches * len(self.pair[0])

    @property
    def dataloader(self) -> _SameBatch:
        return self

    def set_epoch(self, epoch: int) -> None:
        """The order of one batch does not depend on the epoch."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(self.num_batches):
            yield self.pair


class TheirLoop:
    """Their loop on one device. It changes the model: it moves it to the device and trains it."""

    def __init__(self, lab: Lab, clip: Clip, *, precision: str) -> None:
        self.lab, self.clip = lab, clip
        # its models are not channels last
        self.model = clip.model.to(lab.device, memory_format=torch.contiguous_format)
        logging.getLogger().setLevel(logging.ERROR)
        self.options = argparse.Namespace(
            device=str(lab.device), precision=precision, distill=False, accum_freq=1, skip_scheduler=True,
            horovod=False, grad_clip_norm=None, rank=0, local_rank=0, log_local=False, world_size=1,
            log_every_n_steps=100, wandb=False, batch_size=0,
        )  # fmt: skip
        self.optimiser = torch.optim.AdamW(self._groups(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6)
        self.loss = ClipLoss(cache_labels=True)

    def _groups(self) -> list[dict[str, object]]:
        # the rule of open_clip_train.main
        named = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        plain = [any(part in name for part in ("bn", "ln", "bias", "logit_scale")) or w.ndim < 2 for name, w in named]
        return [
            {"params": [w for (_, w), is_plain in zip(named, plain, strict=True) if is_plain], "weight_decay": 0.0},
            {"params": [w for (_, w), is_plain in zip(named, plain, strict=True) if not is_plain], "weight_decay": 0.2},
        ]

    def run(self, pair: tuple[torch.Tensor, torch.Tensor], num_steps: int) -> None:
        """Take steps on one batch: float32 images as its transform makes them, tokens of the full context."""
        self.options.batch_size = len(pair[0])
        data = {"train": _SameBatch(pair, num_steps)}
        train_one_epoch(self.model, data, self.loss, 0, self.optimiser, None, None, None, self.options)

    def pair(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the batch as its loader gives it: normalised float32 images, in page-locked memory."""
        clip = self.clip
        normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], torch.device("cpu"))
        return self.lab.pinned(normalise(batch.images).contiguous()), batch.texts
