"""What one DDP worker of a training phase does: build or load the model, take up the last checkpoint, then step after
step the same global batches whatever the number of workers; rank 0 keeps the curve, checkpoints and the model folder."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
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
from orchestrator.feed import Feed, Rows, own_the_context, rank_batches
from orchestrator.keeplist import KeepList
from orchestrator.source import Part, Source
from orchestrator.stream import Stream
from orchestrator.tracking import Curve, Trackers

MAX_EXAMPLES = 20
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
    """Ray Train's entry on every worker. A user's mistake goes to the driver by the ticker: retrying would not mend it."""
    job = loop_config["job"]
    try:
        _Worker(job).run()
    except UserError as error:
        ray.get(job.ticker.refuse.remote(str(error)))


class _Worker:
    def __init__(self, job: Job):
        context = ray.train.get_context()
        self.job, self.rank, self.num_ranks = job, context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        own_the_context(num_ranks=self.num_ranks, worker_cpus=job.config.training.cpus_per_worker)
        self.clip = _build_model(job)
        self.learner = self._learner()
        self.first_step, self.skipped, self.examples = self._restore()

    def _learner(self) -> Learner:
        training = self.job.config.training
        wrapped = ray.train.torch.prepare_model(self.clip.model, parallel_strategy_kwargs={"gradient_as_bucket_view": True})
        adamw = optimiser.adamw(self.clip.model, lr=self.job.phase.lr, weight_decay=training.weight_decay,
                                beta1=training.beta1, beta2=training.beta2, eps=training.eps)
        loss = MaskedClipLoss(local_loss=training.local_loss, rank=self.rank, world_size=self.num_ranks)
        try:
            return Learner(model=wrapped, loss=loss, optimiser=adamw, precision=training.precision,
                           grad_clip_norm=training.grad_clip_norm, device=self.device,
                           mean=self.clip.preprocess_cfg["mean"], std=self.clip.preprocess_cfg["std"])
        except ValueError as error:
            raise UserError(f"training: {error}") from error

    def _restore(self) -> tuple[int, int, list[str]]:
        last = ray.train.get_checkpoint()
        if last is None:
            return 0, 0, []
        with last.as_directory() as folder:
            saved = checkpoint.load(Path(folder) / CHECKPOINT_FILE)
            told = json.loads((Path(folder) / "skipped.json").read_text())
        return checkpoint.restore(self.learner, saved), told["count"], told["examples"]

    def run(self) -> None:
        job, stream, training = self.job, self.job.stream, self.job.config.training
        log = _Log(job, self.first_step) if self.rank == 0 else None
        waited, wait_mark, mark = 0.0, 0, time.monotonic()
        batches = self._batches()
        metrics: StepMetrics | None = None
        for step in range(self.first_step, stream.num_steps):
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            metrics = self.learner.step(batch, self._lr(step))
            done, last = step + 1, step + 1 == stream.num_steps
            if done % training.log_every_steps == 0 or last:
                self._agree_on_skipped(done)
                elapsed, steps = time.monotonic() - mark, done - max(wait_mark, self.first_step)
                record = self._record(done, metrics, steps * stream.global_batch_size / elapsed, waited / elapsed)
                waited, wait_mark, mark = 0.0, done, time.monotonic()
                if log is not None:
                    log.add(record)
            if done % training.checkpoint_every_steps == 0 and not last:
                self._agree_on_skipped(done)
                self._checkpoint(done, log)
        if log is not None:
            self._finish(log)
        dist.barrier() if self.num_ranks > 1 else None

    def _lr(self, step: int) -> float:
        return cosine_with_warmup(step, peak_lr=self.job.phase.lr, num_steps=self.job.stream.num_steps,
                                  num_warmup_steps=num_warmup_steps(self.job.phase, self.job.stream))

    def _batches(self) -> Iterator[Batch]:
        job = self.job
        size = self.clip.preprocess_cfg["size"]
        feed = Feed(source=job.source, parts=job.parts, catalog=job.catalog, keep=job.keep, stream=job.stream,
                    image_size=size[0] if isinstance(size, (tuple, list)) else size,
                    augmentation=job.config.training.augmentation, max_image_pixels=job.config.training.max_image_pixels)
        slots = job.stream.global_batch_size // self.num_ranks
        self.own_skipped: list[str] = []
        for rows in rank_batches(feed, rank=self.rank, num_ranks=self.num_ranks, first_step=self.first_step):
            bad = ~rows["valid"]
            self.own_skipped += [f"{key}: {why}" for key, why in zip(rows["key"][bad], rows["problem"][bad], strict=True)]
            yield to_batch(rows, self.clip, slots)
        # a rank whose lanes end before the last global batch still takes part in it, with no pair of its own
        yield to_batch({"image": np.zeros((0, feed.image_size, feed.image_size, 3), np.uint8), "caption": np.array([], object),
                        "valid": np.zeros(0, bool)}, self.clip, slots)

    def _agree_on_skipped(self, done: int) -> None:
        gathered: list[Any] = [None] * self.num_ranks
        own = (len(self.own_skipped), self.own_skipped[:MAX_EXAMPLES])
        if self.num_ranks > 1:
            dist.all_gather_object(gathered, own)
        else:
            gathered = [own]
        self.own_skipped.clear()
        self.skipped += sum(count for count, _ in gathered)
        self.examples = (self.examples + [example for _, examples in gathered for example in examples])[:MAX_EXAMPLES]
        seen = min(done * self.job.stream.global_batch_size, self.job.stream.num_samples)
        allowed = max(1, self.job.config.training.max_bad_pairs * seen)
        if self.skipped > allowed:
            raise UserError(f"{self.job.name}: {self.skipped:,} of {seen:,} samples could not be used "
                            f"({'; '.join(self.examples[:3])}); mend the pool or raise training.max_bad_pairs")

    def _record(self, done: int, metrics: StepMetrics, samples_per_second: float, wait_share: float) -> dict[str, float]:
        stream = self.job.stream
        loss = metrics.loss.item()
        if not math.isfinite(loss):
            raise UserError(f"{self.job.name}: the loss is {loss} at step {done}; lower the learning rate, "
                            "set training.grad_clip_norm, or use training.precision=fp32")
        seen = min(done * stream.global_batch_size, stream.num_samples)
        return {"step": done, "samples_seen": seen, "epoch": seen / stream.num_pairs, "loss": loss,
                "lr": self._lr(done - 1), "logit_scale": metrics.logit_scale.item(), "grad_norm": metrics.grad_norm.item(),
                "samples_per_second": samples_per_second, "data_wait_share": wait_share, "skipped": self.skipped}

    def _checkpoint(self, done: int, log: _Log | None) -> None:
        if log is None:
            ray.train.report({"step": done})
            return
        log.curve.flush()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(checkpoint.state(self.learner, done), Path(folder) / CHECKPOINT_FILE)
            (Path(folder) / "skipped.json").write_text(json.dumps({"count": self.skipped, "examples": self.examples}))
            ray.train.report({"step": done}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _finish(self, log: _Log) -> None:
        artifact, stream = self.job.artifact, self.job.stream
        log.close()
        with tempfile.TemporaryDirectory() as folder:
            model.save(self.clip, Path(folder))
            store.copy(folder, artifact.path("model"))
        store.write_json(artifact.path("summary.json"), {
            "loss": log.curve.records[-1]["loss"], "steps": stream.num_steps, "samples_seen": stream.num_samples,
            "pairs": stream.num_pairs, "epochs": stream.num_epochs, "skipped": self.skipped, "examples": self.examples})


class _Log:
    """Rank 0's outlets for the curve."""

    def __init__(self, job: Job, first_step: int):
        self.curve = Curve(job.artifact.uri, first_step=first_step)
        self.trackers = Trackers(job.config.tracking, uri=job.artifact.uri, name=job.name, first_step=first_step,
                                 settings=job.config.model_dump(mode="json"))
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
            return model.build(name=config.name, config=config.config, pretrained=config.pretrained,
                               image_size=config.image_size, context_length=config.context_length,
                               seed=job.config.training.seed)
        with tempfile.TemporaryDirectory() as folder:
            store.copy(job.start_uri, folder)
            return model.load(folder)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
