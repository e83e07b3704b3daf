"""One DDP worker of a training phase.

It builds or loads the model, restores the last checkpoint, and takes the remaining steps. The global batches are the
same for any number of workers. Rank 0 writes the curve, the checkpoints and the model folder."""

from __future__ import annotations

import logging
import time

import ray
import ray.train
import ray.train.torch
import torch

from orchestrator.clip.model import Clip
from orchestrator.clip.train_step import ReadMetrics, StepMetrics, TrainStep
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.training import validation
from orchestrator.training.agreement import AgreedError, CheckpointTimer, RankRequest, from_first, gather, wait_for_all
from orchestrator.training.bad_samples import BadSamples
from orchestrator.training.batch_log import BatchLog
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.device_loader import load_batches
from orchestrator.training.failures import reported
from orchestrator.training.job import Job
from orchestrator.training.phase_signals import forwarded_log, wait_for_first
from orchestrator.training.reader import batch_keys, configure_ray_data, rank_blocks
from orchestrator.training.start import agreed_recipe, build_model, computed_as, num_threads
from orchestrator.training.tracking.phase_log import Pace, PhaseLog, memory

logger = logging.getLogger(__name__)
# keys in the error for a batch with a loss that is not finite
KEYS_SHOWN = 5


def train_worker(job: Job) -> None:
    """Train the phase on this worker; every worker of Ray Train calls it.

    After an error that no retry can fix, the next start returns at once (`failures.py`)."""
    if ray.get(job.signals.state.remote()).error is not None:
        return
    rank = ray.train.get_context().get_world_rank()
    with forwarded_log(job.signals, rank, job.config.log_level):
        if rank == 0:
            _log_start(job)
        with reported(job):
            _Worker(job).run()


def _log_start(job: Job) -> None:
    num_starts, num_workers = ray.get(job.signals.start_group.remote()), ray.train.get_context().get_world_size()
    if num_starts == 1:
        logger.info("%s: started with %d workers", job.name, num_workers)
    else:
        logger.warning("%s: restarted with %d workers, restart number %d", job.name, num_workers, num_starts - 1)


class _Worker:
    """The state of one rank. Methods are in the order of their calls: start, steps, what is due after a step, end."""

    def __init__(self, job: Job):
        context, training = ray.train.get_context(), job.config.training
        self.job, self.rank, self.num_ranks = job, context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(num_threads(job, context.get_local_world_size()))
        configure_ray_data(num_ranks=self.num_ranks, worker_cpus=training.cpus_per_worker)
        max_captionless = job.config.source.limits.max_captionless
        self.bad_samples = BadSamples(max_share=training.max_bad_pairs, max_captionless=max_captionless)
        self.clip = self._build_model()
        try:
            recipe = agreed_recipe(job, self.clip, self.device, context)
            self.train_step = TrainStep(self.clip, recipe, device=self.device, rank=self.rank, num_ranks=self.num_ranks)
        except ValueError as error:
            raise AgreedError(f"training: {error}") from error
        self.inputs = job.reader_inputs(self.clip)
        self.checkpoints = Checkpoints(job.artifact.path("checkpoints"), keep=training.keep_checkpoints)
        self.timer = CheckpointTimer(training.checkpoint_every_minutes)
        # seconds of training before the restored checkpoint, by earlier attempts
        self.started, self.seconds_before = time.monotonic(), 0.0
        self.first_step = self._restore()
        self.phase_log = PhaseLog(job, self.first_step) if self.rank == 0 else None
        self.batch_log = self._open_batch_log() if training.record_batches else None
        keeps_best = self.rank == 0 and training.keep_model == "best"
        self.best = validation.BestModel(job.artifact, training.best_metric) if keeps_best else None

    def _build_model(self) -> Clip:
        clip, problem = None, None
        try:
            clip = build_model(self.job)
        except ValueError as error:
            problem = f"model: {error}"
        # all ranks must agree: a file may exist on one node and not on another
        RankRequest.of_all(gather(RankRequest(error=problem), self.num_ranks))
        assert clip is not None
        return clip

    def _restore(self) -> int:
        """Restore the newest readable checkpoint; return the number of steps taken before."""
        newest = self.checkpoints.newest() if self.rank == 0 else None
        name = from_first(newest and newest.name, self.num_ranks)
        if newest is not None:
            self.checkpoints.remove_newer(name)
            for problem in newest.problems:
                self.job.signals.warn.remote(f"{self.job.name}: {problem}")
        if name is None:
            return 0
        saved = newest.saved if newest else self.checkpoints.load(name)
        # the keys of a checkpoint keep their spelling: checkpoints of earlier versions are read
        self.bad_samples.restore(saved["skips"])
        self.train_step.restore(saved["learner"])
        self.seconds_before = saved["seconds"]
        logger.info("%s: resuming after step %d, from %s", self.job.name, saved["step"], name)
        return saved["step"]

    def _open_batch_log(self) -> BatchLog:
        uri = self.job.artifact.path("batches")
        log = BatchLog(uri, rank=self.rank, num_ranks=self.num_ranks, first_step=self.first_step)
        if self.rank == 0:
            log.drop_lost_steps()
        # no rank may write before old files are removed
        wait_for_all(self.num_ranks)
        return log

    def run(self) -> None:
        """Take every step from the last checkpoint to the end, or to a requested stop."""
        try:
            self._train()
        finally:
            if self.phase_log is not None:
                self.phase_log.close()

    def _train(self) -> None:
        job, pace = self.job, Pace(self.first_step)
        blocks = rank_blocks(self.inputs, rank=self.rank, num_ranks=self.num_ranks, first_step=self.first_step)
        batches = load_batches(blocks, self.inputs.decoding, slots=job.order.slots(self.num_ranks), device=self.device)
        for step in range(self.first_step, job.order.num_steps):
            with pace.waiting():
                loaded = next(batches)
            self.bad_samples.add(loaded.rows)
            if self.batch_log is not None:
                self.batch_log.add(step, loaded.rows)
            metrics = self.train_step.run(loaded.batch, lr=job.lr(step), step=step)
            if self._after_step(step + 1, metrics, pace):
                return self._stop(step + 1)
        self._finish()

    def _after_step(self, done: int, metrics: StepMetrics, pace: Pace) -> bool:
        """Log, evaluate and write a checkpoint if that is due after `done` steps; return whether to stop the phase."""
        training = self.job.config.training
        logs = self._is_due(training.log_every_steps, done) or self._evaluates(done)
        saves = done % training.checkpoint_every_steps == 0
        if not logs and not saves:
            return False
        # before anything is written: a state that is not finite is not saved, and all ranks' bad samples are counted
        read = self.train_step.read(metrics)
        agreed = self._agree(done, read)
        if logs:
            self._log(done, read, pace)
        if done == self.job.order.num_steps:
            return False
        if saves or agreed.checkpoint or agreed.stop:
            self._checkpoint(done)
        return agreed.stop

    def _is_due(self, every_steps: int | None, done: int) -> bool:
        return every_steps is not None and (done % every_steps == 0 or done == self.job.order.num_steps)

    def _evaluates(self, done: int) -> bool:
        return self._is_due(self.job.config.training.evaluate_every_steps, done)

    def _agree(self, done: int, read: ReadMetrics) -> RankRequest:
        """Exchange between all ranks: new bad samples, and requests to stop, to write a checkpoint or to fail."""
        new, requests = zip(*gather((self.bad_samples.take_new(), self._request(read)), self.num_ranks), strict=True)
        agreed = RankRequest.of_all(requests)
        self.bad_samples.merge(new, self.job.name, self.job.seen(done))
        return agreed

    def _request(self, read: ReadMetrics) -> RankRequest:
        if read.bad_step is not None:
            return RankRequest(error=self._not_finite(read.bad_step))
        if self.rank != 0:
            return RankRequest()
        stop = ray.get(self.job.signals.state.remote()).stop_requested
        return RankRequest(stop=stop, checkpoint=self.timer.is_due())

    def _not_finite(self, step: int) -> str:
        keys, uri = batch_keys(self.inputs, step), self.job.artifact.path("bad_batch.json")
        if self.rank == 0:
            files.write_json(uri, {"step": step + 1, "keys": keys})
        return (
            f"{self.job.name}: loss or gradients are not finite at step {step + 1}. Its batch has the pairs "
            f"{', '.join(keys[:KEYS_SHOWN])}, ... (all {len(keys)} keys: {uri}). Lower the learning rate, set "
            "training.grad_clip_norm, or use training.precision=fp32"
        )

    def _log(self, done: int, read: ReadMetrics, pace: Pace) -> None:
        self.checkpoints.check()
        job, seen = self.job, self.job.seen(done)
        record = {
            "step": done,
            "samples_seen": seen,
            "epoch": seen / job.order.num_pairs,
            "loss": read.loss,
            "lr": job.lr(done - 1),
            "logit_scale": read.logit_scale,
            "grad_norm": read.grad_norm,
            "skipped": self.bad_samples.total,
            **memory(self.device),
            **pace.mark(done, job.order.global_batch_size),
        }
        if self._evaluates(done):
            record |= self._evaluate(done)
            pace.restart(done)
        if self.phase_log is not None:
            self.phase_log.add(record)

    def _evaluate(self, done: int) -> dict[str, float]:
        # every rank evaluates a share of the sets with the same model: none waits in a collective for an hour
        self.train_step.share_buffers()
        exported, ranks = self.train_step.export(), {"rank": self.rank, "num_ranks": self.num_ranks}
        exported.model.to(self.device)
        measured = validation.evaluate(exported, self.job.sets, self.job.config, **ranks)
        if self.rank == 0:
            values = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
            logger.info("%s: evaluation after step %d: %s", self.job.name, done, values)
        if self.best is not None:
            self.best.offer(exported, measured, done)
        wait_for_first(self.job.signals, f"evaluation after step {done}", self.rank)
        return measured

    def _export(self) -> Clip | None:
        # a copy on the CPU, for rank 0 only; to copy a sharded model, all ranks must take part
        if self.rank != 0 and self.job.recipe.parallel == "ddp":
            return None
        exported = self.train_step.export()
        return exported if self.rank == 0 else None

    def _checkpoint(self, done: int) -> None:
        if self.batch_log is not None:
            self.batch_log.flush(done)
        state = self.train_step.state()
        self.timer.restart()
        if self.phase_log is None or state is None:
            return
        self.phase_log.curve.flush()
        saved = {"step": done, "seconds": self._seconds(), "learner": state, "skips": self.bad_samples.state()}
        self.checkpoints.save(done, saved)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _stop(self, done: int) -> None:
        self.checkpoints.wait()
        if self.rank == 0:
            logger.info("%s: stopping after step %d, as requested", self.job.name, done)
            ray.get(self.job.signals.confirm_stop.remote(done))

    def _finish(self) -> None:
        if self.batch_log is not None:
            self.batch_log.flush(self.job.order.num_steps)
        exported = self._export()
        if self.phase_log is not None and exported is not None:
            self._write_results(exported, self.phase_log)
        wait_for_first(self.job.signals, "results", self.rank)

    def _write_results(self, exported: Clip, phase_log: PhaseLog) -> None:
        job = self.job
        try:
            self.checkpoints.wait()
        except StoreError as error:
            # only a warning: the checkpoint is not needed, as the final model is written next
            job.signals.warn.remote(f"{job.name}: {error}")
        if self.best is None:
            validation.save_model(exported, job.artifact.path("model"))
        else:
            files.copy(job.artifact.path("best"), job.artifact.path("model"))
        summary = {
            "loss": phase_log.curve.records[-1]["loss"],
            **job.order.summary(),
            **computed_as(self.train_step.recipe),
            "seconds": self._seconds(),
            **self.bad_samples.state(),
        }
        files.write_json(job.artifact.path("summary.json"), summary)
        logger.info("%s: finished after %d steps", job.name, job.order.num_steps)
