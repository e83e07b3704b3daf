"""The driver's side of a phase: starts Ray Train's workers, shows their progress, passes on SIGTERM, tells how they
ended."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pyarrow.fs as pafs
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator.engine import ray_cluster
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display, StageProgress
from orchestrator.errors import Stopped, UserError
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.training.job import Job
from orchestrator.training.phase_signals import Told

POLL_SECONDS = 0.5
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def fit(job: Job, num_workers: int, display: Display) -> bool:
    """Trains to the end; whether a SIGTERM came when it was too near for a stop.

    Errors: `UserError` with the workers' own line; `Stopped` after a SIGTERM, when a checkpoint is written."""
    trainer = _trainer(job, num_workers)
    with display.stage(job.name, unit="samples", total=job.stream.num_samples) as progress:
        try:
            with _passing_on_sigterm(job.ticker), _following(job.ticker, progress, display):
                trainer.fit()
        except WorkerGroupError as error:
            raise _cause(error, job, _read(job.ticker)) from None
        told = _read(job.ticker)
        if told.mistake is not None:
            raise UserError(told.mistake)
        if told.stopped_at is not None:
            raise Stopped(
                f"{job.name}: stopped after step {told.stopped_at:,} of {job.stream.num_steps:,}, with a checkpoint; "
                "the same command goes on from there"
            )
        loss = files.read_json(job.artifact.path("summary.json"))["loss"]
        progress.update(job.stream.num_samples, note=f"loss {loss:.3f}")
    return told.stop


def _cause(error: WorkerGroupError, job: Job, told: Told) -> Exception:
    # one line says more than the trace of every worker, where the fault is the pool's, the store's or the config's
    if told.mistake is not None:
        return UserError(told.mistake)
    for cause in error.worker_failures.values():
        if isinstance(cause, UserError):
            return cause
        # what writes by itself, such as TensorBoard's event file, does not say where
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return StoreError(f"{job.name}: cannot write to {job.artifact.uri}: {cause.strerror}; expected room there")
    return next((cause for cause in error.worker_failures.values() if isinstance(cause, OSError)), error)


def _trainer(job: Job, num_workers: int) -> TorchTrainer:
    training, use_gpu = job.config.training, ray_cluster.num_gpus() > 0
    resources = {"CPU": float(training.cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})
    return TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="train",
            **_storage(job.artifact),
            failure_config=FailureConfig(max_failures=training.max_failures),
            # mypy sees the class of Train's first version, which this one takes the place of
            worker_runtime_env={} if use_gpu else {"env_vars": ray_cluster.CPU_ALLOCATOR},  # type: ignore[call-arg]
        ),
    )


def run_worker(loop_config: dict[str, Job]) -> None:
    """Ray Train's entry on every worker; open_clip is loaded there alone."""
    from orchestrator.training.worker import train_worker

    train_worker(loop_config["job"])


def _storage(artifact: Artifact) -> dict[str, Any]:
    # Ray Train takes a pyarrow file system; fsspec's own is wrapped, so that one set of credentials serves all
    if files.is_local(artifact.uri):
        return {"storage_path": artifact.path("ray")}
    fs, path = files.filesystem(artifact.path("ray"))
    return {"storage_path": path, "storage_filesystem": pafs.PyFileSystem(pafs.FSSpecHandler(fs))}


def _read(ticker: Any) -> Told:
    return ray.get(ticker.read.remote())


@contextmanager
def _following(ticker: Any, progress: StageProgress, display: Display) -> Iterator[None]:
    ended, num_shown, num_measured = threading.Event(), 0, 0

    def show() -> None:
        nonlocal num_shown, num_measured
        told = _read(ticker)
        for warning in told.warnings[num_shown:]:
            display.warn(warning)
        num_shown = len(told.warnings)
        if told.latest:
            note = f"loss {told.latest['loss']:.3f}, step {told.latest['step']:.0f}"
            progress.update(int(told.latest["samples_seen"]), note=note)
        for record in told.measured[num_measured:]:
            progress.measured(record)
        num_measured = len(told.measured)

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            show()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        show()


@contextmanager
def _passing_on_sigterm(ticker: Any) -> Iterator[None]:
    # only a main thread may; a trial of a sweep runs in another, and is asked by the sweep
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        ticker.stop.remote()
        # who asks again means at once
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
