"""What one DDP worker of a training phase does: build or load the model, take up the last checkpoint, then step after
step the same global batches whatever the number of workers; rank 0 keeps the curve, checkpoints and the model
folder."""

from __future__ import annotations

import time
from collections.abc import Iterator

import ray
import ray.train
import ray.train.torch
import torch

from orchestrator.clip.model import Clip
from orchestrator.clip.train_step import StepMetrics, TrainStep
from orchestrator.errors import UserError
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.training import validation
from orchestrator.training.agreement import AgreedError, Clock, Wishes, from_first, gather, wait_for_all
from orchestrator.training.bad_samples import Skips
from orchestrator.training.batch_log import BatchRecord
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.device_loader import Loaded, load
from orchestrator.training.job import Job
from orchestrator.training.log import Log, Pace, memory
from orchestrator.training.reader import batch_keys, own_the_context
from orchestrator.training.start import agreed_recipe, build_model, num_threads

KEYS_TOLD = 5


def train_worker(job: Job) -> None:
    """What every worker of Ray Train does.

    A user's mistake goes to the driver by the ticker, as no retry would mend it. Where all ranks see it they end by
    themselves; where one alone does, it must bring down the group, whose next start then ends at once. A place that
    cannot be written may be so for a moment only: the group starts again from the last checkpoint."""
    if ray.get(job.ticker.read.remote()).mistake is not None:
        return
    try:
        _Worker(job).run()
    except AgreedError as error:
        ray.get(job.ticker.refuse.remote(str(error)))
    except StoreError:
        raise
    except UserError as error:
        # what a reading task raised comes with the trace of its task: the line is in the cause
        ray.get(job.ticker.refuse.remote(str(getattr(error, "cause", None) or error)))
        raise


class _Worker:
    def __init__(self, job: Job):
        context, training = ray.train.get_context(), job.config.training
        self.job, self.rank, self.num_ranks = job, context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(num_threads(job, context.get_local_world_size()))
        own_the_context(num_ranks=self.num_ranks, worker_cpus=training.cpus_per_worker)
        self.skips = Skips(max_share=training.max_bad_pairs)
        self.clip = self._build_model()
        try:
            recipe = agreed_recipe(job, self.device, self.num_ranks)
            self.train_step = TrainStep(self.clip, recipe, device=self.device, rank=self.rank, num_ranks=self.num_ranks)
        except ValueError as error:
            raise AgreedError(f"training: {error}") from error
        self.feed = job.feed(self.clip)
        self.checkpoints = Checkpoints(job.artifact.path("checkpoints"), keep=training.keep_checkpoints)
        self.clock = Clock(training.checkpoint_every_minutes)
        self.started, self.seconds_before = time.monotonic(), 0.0
        self.first_step = self._restore()
        self.log = Log(job, self.first_step) if self.rank == 0 else None
        self.record = self._batch_record() if training.record_batches else None
        keeps_best = self.rank == 0 and training.keep_model == "best"
        self.best = validation.Best(job.artifact, training.best_metric) if keeps_best else None

    def _build_model(self) -> Clip:
        clip, mistake = None, None
        try:
            clip = build_model(self.job)
        except ValueError as error:
            mistake = f"model: {error}"
        # a file may be there on one node and not on another
        Wishes.of_all(gather(Wishes(mistake=mistake), self.num_ranks))
        assert clip is not None
        return clip

    def _restore(self) -> int:
        newest = self.checkpoints.newest() if self.rank == 0 else None
        name = from_first(newest and newest.name, self.num_ranks)
        if newest is not None:
            self.checkpoints.go_on_from(name)
            for problem in newest.problems:
                self.job.ticker.warn.remote(f"{self.job.name}: {problem}")
        if name is None:
            return 0
        saved = newest.saved if newest else self.checkpoints.load(name)
        self.skips.restore(saved["skips"])
        self.train_step.restore(saved["learner"])
        self.seconds_before = saved["seconds"]
        return saved["step"]

    def _batch_record(self) -> BatchRecord:
        uri = self.job.artifact.path("batches")
        record = BatchRecord(uri, rank=self.rank, num_ranks=self.num_ranks, first_step=self.first_step)
        if self.rank == 0:
            record.drop_lost_steps()
        wait_for_all(self.num_ranks)
        return record

    def run(self) -> None:
        """Every step from the last checkpoint to the end."""
        try:
            self._train()
        finally:
            if self.log is not None:
                self.log.close()

    def _train(self) -> None:
        job, pace = self.job, Pace(self.first_step)
        batches = self._batches()
        for step in range(self.first_step, job.stream.num_steps):
            with pace.waiting():
                loaded = next(batches)
            self.skips.add(loaded.rows)
            if self.record is not None:
                self.record.add(step, loaded.rows)
            metrics = self.train_step.run(loaded.batch, lr=job.lr(step), step=step)
            if self._after_step(step + 1, metrics, pace):
                return self._stop(step + 1)
        self._finish()

    def _after_step(self, done: int, metrics: StepMetrics, pace: Pace) -> bool:
        """The log, evaluation and checkpoint that are due after so many steps; whether the phase is to stop."""
        training = self.job.config.training
        logs = self._is_due(training.log_every_steps, done) or self._evaluates(done)
        saves = done % training.checkpoint_every_steps == 0
        if not logs and not saves:
            return False
        # before anything is written: never a state that is not finite, and with the skips of all ranks
        agreed = self._agree(done)
        if logs:
            self._log(done, metrics, pace)
        if done == self.job.stream.num_steps:
            return False
        if saves or agreed.checkpoint or agreed.stop:
            self._checkpoint(done)
        return agreed.stop

    def _is_due(self, every_steps: int, done: int) -> bool:
        return done % every_steps == 0 or done == self.job.stream.num_steps

    def _evaluates(self, done: int) -> bool:
        every = self.job.config.training.evaluate_every_steps
        return every is not None and self._is_due(every, done)

    def _batches(self) -> Iterator[Loaded]:
        return load(
            self.feed,
            self.clip,
            rank=self.rank,
            num_ranks=self.num_ranks,
            first_step=self.first_step,
            device=self.device,
        )

    def _log(self, done: int, metrics: StepMetrics, pace: Pace) -> None:
        self.checkpoints.check()
        job, seen = self.job, self.job.seen(done)
        record = {
            "step": done,
            "samples_seen": seen,
            "epoch": seen / job.stream.num_pairs,
            "loss": metrics.loss.item(),
            "lr": job.lr(done - 1),
            "logit_scale": metrics.logit_scale.item(),
            "grad_norm": metrics.grad_norm.item(),
            "skipped": self.skips.total,
            **memory(self.device),
            **pace.mark(done, job.stream.global_batch_size),
        }
        if self._evaluates(done):
            record |= self._evaluate(done)
            pace.restart(done)
        if self.log is not None:
            self.log.add(record)

    def _agree(self, done: int) -> Wishes:
        """All ranks learn what any of them knows: pairs skipped, a wish to stop, a checkpoint due, a mistake."""
        told = self.skips.told(), self._wishes()
        skipped, wishes = zip(*gather(told, self.num_ranks), strict=True)
        agreed = Wishes.of_all(wishes)
        self.skips.agree(skipped, self.job.name, self.job.seen(done))
        return agreed

    def _wishes(self) -> Wishes:
        bad_step = self.train_step.first_bad_step()
        if bad_step is not None:
            return Wishes(mistake=self._not_finite(bad_step))
        if self.rank != 0:
            return Wishes()
        return Wishes(stop=ray.get(self.job.ticker.read.remote()).stop, checkpoint=self.clock.is_due())

    def _not_finite(self, step: int) -> str:
        keys, place = batch_keys(self.feed, step), self.job.artifact.path("bad_batch.json")
        if self.rank == 0:
            files.write_json(place, {"step": step + 1, "keys": keys})
        return (
            f"{self.job.name}: loss or gradients are not finite at step {step + 1}, whose batch holds "
            f"{', '.join(keys[:KEYS_TOLD])}, ... (all {len(keys)} keys: {place}); lower the learning rate, set "
            "training.grad_clip_norm, or use training.precision=fp32"
        )

    def _evaluate(self, done: int) -> dict[str, float]:
        exported = self._export()
        measured: dict[str, float] = {}
        if exported is not None:
            exported.model.to(self.device)
            measured = validation.evaluate(exported, self.job.sets, self.job.config)
            if self.best is not None:
                self.best.offer(exported, measured, done)
        wait_for_all(self.num_ranks)
        return measured

    def _export(self) -> Clip | None:
        # a copy on the CPU, which rank 0 alone needs; a sharded model takes all ranks to copy
        if self.rank != 0 and self.job.recipe.parallel == "ddp":
            return None
        exported = self.train_step.export()
        return exported if self.rank == 0 else None

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _await_checkpoint(self) -> None:
        try:
            self.checkpoints.wait()
        except StoreError as error:
            # nothing needs it any more: the model comes next
            self.job.ticker.warn.remote(f"{self.job.name}: {error}")

    def _checkpoint(self, done: int) -> None:
        if self.record is not None:
            self.record.flush(done)
        state = self.train_step.state()
        self.clock.restart()
        if self.log is None or state is None:
            return
        self.log.curve.flush()
        saved = {"step": done, "seconds": self._seconds(), "learner": state, "skips": self.skips.state()}
        self.checkpoints.save(done, saved)

    def _stop(self, done: int) -> None:
        self.checkpoints.wait()
        if self.rank == 0:
            ray.get(self.job.ticker.stopped.remote(done))

    def _finish(self) -> None:
        job, stream = self.job, self.job.stream
        if self.record is not None:
            self.record.flush(stream.num_steps)
        exported = self._export()
        if self.log is not None and exported is not None:
            self._await_checkpoint()
            if self.best is None:
                validation.save_model(exported, job.artifact.path("model"))
            else:
                files.copy(job.artifact.path("best"), job.artifact.path("model"))
            summary = {
                "loss": self.log.curve.records[-1]["loss"],
                "steps": stream.num_steps,
                "samples_seen": stream.num_samples,
                "pairs": stream.num_pairs,
                "epochs": round(stream.num_epochs, 4),
                "precision": self.train_step.recipe.precision,
                "seconds": self._seconds(),
                **self.skips.state(),
            }
            files.write_json(job.artifact.path("summary.json"), summary)
        wait_for_all(self.num_ranks)
