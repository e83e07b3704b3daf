"""What one DDP worker of a training phase does: build or load the model, take up the last checkpoint, then step after
step the same global batches whatever the number of workers; rank 0 keeps the curve, checkpoints and the model
folder."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from orchestrator import store
from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog
from orchestrator.clip import checkpoint, model, optimiser
from orchestrator.clip.loop import Batch, Learner, StepMetrics
from orchestrator.clip.loss import MaskedClipLoss
from orchestrator.clip.model import Clip
from orchestrator.clip.schedule import cosine_with_warmup
from orchestrator.config import Config, PhaseConfig
from orchestrator.errors import UserError
from orchestrator.keeplist import KeepList
from orchestrator.source import Part, Source
from orchestrator.store import StoreError
from orchestrator.training.feed import Feed, Rows, own_the_context, rank_batches
from orchestrator.training.skips import Skips
from orchestrator.training.stream import Stream
from orchestrator.training.tracking import Curve, Trackers

CHECKPOINT_FILE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A phase as its workers get it."""

    config: Config
    phase: PhaseConfig
    name: str
    artifact: Artifact
    start_uri: str | None
    source: Source
    parts: tuple[Part, ...]
    catalog: Catalog
    keep: KeepList
    stream: Stream
    ticker: Any


def train_worker(loop_config: dict[str, Job]) -> None:
    """Ray Train's entry on every worker.

    A mistake that all ranks see alike goes to the driver by the ticker, as no retry would mend it; a place that cannot
    be written is seen by rank 0 alone, so it must bring the group down."""
    job = loop_config["job"]
    try:
        _Worker(job).run()
    except StoreError:
        raise
    except UserError as error:
        ray.get(job.ticker.refuse.remote(str(error)))


class _Worker:
    def __init__(self, job: Job):
        context, training = ray.train.get_context(), job.config.training
        self.job, self.rank, self.num_ranks = job, context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        own_the_context(num_ranks=self.num_ranks, worker_cpus=training.cpus_per_worker)
        self.skips = Skips(num_ranks=self.num_ranks, max_share=training.max_bad_pairs)
        self.clip = _build_model(job)
        self.learner = self._learner()
        self.first_step = self._restore()

    def _learner(self) -> Learner:
        training = self.job.config.training
        wrapped = ray.train.torch.prepare_model(
            self.clip.model, parallel_strategy_kwargs={"gradient_as_bucket_view": True}
        )
        adamw = optimiser.adamw(
            self.clip.model,
            lr=self.job.phase.lr,
            weight_decay=training.weight_decay,
            beta1=training.beta1,
            beta2=training.beta2,
            eps=training.eps,
        )
        loss = MaskedClipLoss(local_loss=training.local_loss, rank=self.rank, world_size=self.num_ranks)
        try:
            return Learner(
                model=wrapped,
                loss=loss,
                optimiser=adamw,
                precision=training.precision,
                grad_clip_norm=training.grad_clip_norm,
                device=self.device,
                mean=self.clip.preprocess_cfg["mean"],
                std=self.clip.preprocess_cfg["std"],
            )
        except ValueError as error:
            raise UserError(f"training: {error}") from error

    def _restore(self) -> int:
        last = ray.train.get_checkpoint()
        if last is None:
            return 0
        with last.as_directory() as folder:
            self.skips.restore(Path(folder))
            return checkpoint.restore(self.learner, checkpoint.load(Path(folder) / CHECKPOINT_FILE))

    def run(self) -> None:
        """Every step from the last checkpoint to the end."""
        job, stream, training = self.job, self.job.stream, self.job.config.training
        log = _Log(job, self.first_step) if self.rank == 0 else None
        batches, pace = self._batches(), _Pace(self.first_step)
        for step in range(self.first_step, stream.num_steps):
            with pace.waiting():
                batch = next(batches)
            metrics = self.learner.step(batch, self._lr(step))
            done, last = step + 1, step + 1 == stream.num_steps
            if done % training.log_every_steps == 0 or last:
                record = self._record(done, metrics) | pace.mark(done, stream.global_batch_size)
                if log is not None:
                    log.add(record)
            if done % training.checkpoint_every_steps == 0 and not last:
                self._checkpoint(done, log)
        if log is not None:
            self._finish(log)
        if self.num_ranks > 1:
            dist.barrier()

    def _seen(self, done: int) -> int:
        return min(done * self.job.stream.global_batch_size, self.job.stream.num_samples)

    def _lr(self, step: int) -> float:
        return cosine_with_warmup(
            step,
            peak_lr=self.job.phase.lr,
            num_steps=self.job.stream.num_steps,
            num_warmup_steps=num_warmup_steps(self.job.phase, self.job.stream),
        )

    def _batches(self) -> Iterator[Batch]:
        job, training, size = self.job, self.job.config.training, self.clip.preprocess_cfg["size"]
        feed = Feed(
            source=job.source,
            parts=job.parts,
            catalog=job.catalog,
            keep=job.keep,
            stream=job.stream,
            image_size=size[0] if isinstance(size, (tuple, list)) else size,
            augmentation=training.augmentation,
            max_image_pixels=training.max_image_pixels,
        )
        slots = job.stream.global_batch_size // self.num_ranks
        for rows in rank_batches(feed, rank=self.rank, num_ranks=self.num_ranks, first_step=self.first_step):
            self.skips.add(rows)
            yield to_batch(rows, self.clip, slots)
        # a rank whose lanes end before the last global batch still takes part in it, with no pair of its own
        none = np.zeros((0, feed.image_size, feed.image_size, 3), np.uint8)
        yield to_batch({"image": none, "caption": np.array([], object), "valid": np.zeros(0, bool)}, self.clip, slots)

    def _record(self, done: int, metrics: StepMetrics) -> dict[str, float]:
        seen, loss = self._seen(done), metrics.loss.item()
        self.skips.agree(self.job.name, seen)
        if not math.isfinite(loss):
            raise UserError(
                f"{self.job.name}: the loss is {loss} at step {done}; lower the learning rate, "
                "set training.grad_clip_norm, or use training.precision=fp32"
            )
        return {
            "step": done,
            "samples_seen": seen,
            "epoch": seen / self.job.stream.num_pairs,
            "loss": loss,
            "lr": self._lr(done - 1),
            "logit_scale": metrics.logit_scale.item(),
            "grad_norm": metrics.grad_norm.item(),
            "skipped": self.skips.total,
        }

    def _checkpoint(self, done: int, log: _Log | None) -> None:
        self.skips.agree(self.job.name, self._seen(done))
        if log is None:
            ray.train.report({"step": done})
            return
        log.curve.flush()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(checkpoint.state(self.learner, done), Path(folder) / CHECKPOINT_FILE)
            self.skips.save(Path(folder))
            ray.train.report({"step": done}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _finish(self, log: _Log) -> None:
        artifact, stream = self.job.artifact, self.job.stream
        log.close()
        with tempfile.TemporaryDirectory() as folder:
            model.save(self.clip, Path(folder))
            store.copy(folder, artifact.path("model"))
        store.write_json(
            artifact.path("summary.json"),
            {
                "loss": log.curve.records[-1]["loss"],
                "steps": stream.num_steps,
                "samples_seen": stream.num_samples,
                "pairs": stream.num_pairs,
                "epochs": round(stream.num_epochs, 4),
                "skipped": self.skips.total,
                "examples": self.skips.examples,
            },
        )


class _Pace:
    """Samples/s and the share of the time spent waiting for data, since the last mark."""

    def __init__(self, first_step: int):
        self.step, self.marked, self.waited = first_step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    def mark(self, done: int, batch_size: int) -> dict[str, float]:
        now = time.monotonic()
        elapsed = now - self.marked
        pace = {
            "samples_per_second": (done - self.step) * batch_size / elapsed,
            "data_wait_share": self.waited / elapsed,
        }
        self.step, self.marked, self.waited = done, now, 0.0
        return pace


class _Log:
    """Rank 0's outlets for the curve."""

    def __init__(self, job: Job, first_step: int):
        self.curve = Curve(job.artifact.uri, first_step=first_step)
        self.trackers = Trackers(
            job.config.tracking,
            uri=job.artifact.uri,
            name=job.name,
            first_step=first_step,
            settings=job.config.model_dump(mode="json"),
        )
        self.ticker = job.ticker

    def add(self, record: dict[str, float]) -> None:
        self.curve.log(record)
        self.trackers.log(record)
        self.ticker.tick.remote(record)

    def close(self) -> None:
        self.curve.flush()
        self.trackers.close()


def num_warmup_steps(phase: PhaseConfig, stream: Stream) -> int:
    """Warm-up in steps, from steps or from (parts of) epochs."""
    if phase.warmup_steps:
        return phase.warmup_steps
    return round(phase.warmup_epochs * stream.num_pairs / stream.global_batch_size)


def to_batch(rows: Rows, clip: Clip, slots: int) -> Batch:
    """Decoded rows as tensors, filled up with masked slots: every rank's share of a batch has the same size.

    The filling repeats the rows, so that a batch norm's statistics stay those of pictures."""
    num_rows = len(rows["valid"])
    images = torch.from_numpy(np.ascontiguousarray(rows["image"])).permute(0, 3, 1, 2)
    texts = clip.tokenizer(list(rows["caption"])) if num_rows else clip.tokenizer([""])[:0]
    valid = torch.from_numpy(rows["valid"].astype(bool))
    if num_rows < slots:
        fill = torch.arange(slots - num_rows) % max(1, num_rows)
        blank = 0 if num_rows else slots
        images = torch.cat([images, images[fill[: slots - blank]], images.new_zeros(blank, *images.shape[1:])])
        texts = torch.cat([texts, texts[fill[: slots - blank]], texts.new_zeros(blank, texts.shape[1])])
        valid = torch.cat([valid, valid.new_zeros(slots - num_rows)])
    return Batch(images=images, texts=texts, valid=valid)


def _build_model(job: Job) -> Clip:
    config = job.config.model
    try:
        if job.start_uri is None:
            return model.build(
                name=config.name,
                config=config.config,
                pretrained=config.pretrained,
                image_size=config.image_size,
                context_length=config.context_length,
                seed=job.config.training.seed,
            )
        with tempfile.TemporaryDirectory() as folder:
            store.copy(job.start_uri, folder)
            return model.load(folder)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
