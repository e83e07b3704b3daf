"""The driver of a training phase: starts Ray Train's workers, shows their progress and log, forwards stop requests."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.fs as pafs
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator.engine import ray_cluster, stop_signals
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import read_json
from orchestrator.engine.console import Display, StageProgress
from orchestrator.errors import Stopped, UserError
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.training.job import Job
from orchestrator.training.phase_signals import PhaseState

POLL_SECONDS = 0.5
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# captions of other lengths and batches of other sizes would leave gaps that no later tensor fits into
GPU_ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
OWN_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def fit(job: Job, num_workers: int, display: Display) -> bool:
    """Train the phase to its end; return whether a stop request came too late for a stop before the end.

    Errors: `UserError` with the workers' error; `Stopped` after a stop request, once a checkpoint is written."""
    trainer = _trainer(job, num_workers)
    with display.stage(job.name, unit="samples", total=job.order.num_samples) as progress:
        try:
            with _forwarded_stop(job.signals), _followed(_Follower(job.signals, progress, display)):
                _in_thread(trainer.fit)
        except WorkerGroupError as error:
            raise _cause(error, job, _state(job.signals)) from None
        state = _state(job.signals)
        if state.error is not None:
            raise UserError(state.error)
        if state.stopped_at is not None:
            raise Stopped(
                f"{job.name}: stopped after step {state.stopped_at:,} of {job.order.num_steps:,}, with a checkpoint; "
                "run the same command again to continue"
            )
        loss = read_json(job.artifact.path("summary.json"))["loss"]
        progress.update(job.order.num_samples, note=f"loss {loss:.3f}")
    return state.stop_requested


def _trainer(job: Job, num_workers: int) -> TorchTrainer:
    training, use_gpu = job.config.training, ray_cluster.num_gpus() > 0
    resources = {"CPU": float(ray_cluster.cpus_per_worker(training.cpus_per_worker))} | (
        {"GPU": 1.0} if use_gpu else {}
    )
    return TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="train",
            **_storage(job.artifact),
            failure_config=FailureConfig(max_failures=training.max_failures),
            # mypy sees the RunConfig of Ray Train's first version, not the one that is imported
            worker_runtime_env={"env_vars": _allocator(use_gpu)},  # type: ignore[call-arg]
        ),
    )


def _allocator(use_gpu: bool) -> dict[str, str]:
    if not use_gpu:
        return ray_cluster.CPU_ALLOCATOR
    return {} if any(map(os.environ.get, OWN_ALLOCATOR)) else GPU_ALLOCATOR


def run_worker(loop_config: dict[str, Job]) -> None:
    """Train on one worker; Ray Train calls it. open_clip is imported here, so the driver does not load it."""
    from orchestrator.training.worker import train_worker

    train_worker(loop_config["job"])


def _storage(artifact: Artifact) -> dict[str, Any]:
    # Ray Train needs a pyarrow file system; wrapping fsspec's needs only one set of credentials
    if files.is_local(artifact.uri):
        return {"storage_path": artifact.path("ray")}
    fs, path = files.filesystem(artifact.path("ray"))
    return {"storage_path": path, "storage_filesystem": pafs.PyFileSystem(pafs.FSSpecHandler(fs))}


class _Follower:
    """Shows what the workers have signalled since the last call, each thing once."""

    def __init__(self, signals: Any, progress: StageProgress, display: Display):
        self.signals, self.progress, self.display = signals, progress, display
        self.num_warnings = self.num_evaluations = 0
        self.last_step: float | None = None

    def show(self) -> None:
        """Log the workers' lines; show new warnings, the last logged step and evaluations."""
        state, log = ray.get([self.signals.state.remote(), self.signals.take_log.remote()])
        for line in log:
            logging.getLogger(line.logger).log(line.level, "%s", line.text)
        for warning in state.warnings[self.num_warnings :]:
            self.display.warn(warning)
        self.num_warnings = len(state.warnings)
        # once per logged step: an update with old numbers would print them again, with a rate that falls
        if state.latest and state.latest["step"] != self.last_step:
            self.last_step = state.latest["step"]
            self._update(state.latest)
        for record in state.evaluations[self.num_evaluations :]:
            self.progress.measured(record)
        self.num_evaluations = len(state.evaluations)

    def _update(self, latest: dict[str, float]) -> None:
        note = f"loss {latest['loss']:.3f}, step {latest['step']:.0f}"
        self.progress.update(int(latest["samples_seen"]), note=note, rate=latest["samples_per_second"])


@contextmanager
def _followed(follower: _Follower) -> Iterator[None]:
    """Call the follower from a thread during the block, and once after it."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            follower.show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        follower.show()


def _in_thread(call: Callable[[], object]) -> None:
    """Call in a thread and wait: in the main thread, Ray Train replaces the handler of SIGINT by its own."""
    errors: list[BaseException] = []

    def catching() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 raised again in the thread that waits
            errors.append(error)

    # a daemon: after a second stop request, the command ends without it
    thread = threading.Thread(target=catching, daemon=True, name="train")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@contextmanager
def _forwarded_stop(signals: Any) -> Iterator[None]:
    """Turn a signal during the block into a stop request to the workers; a second one ends the command at once."""
    # only a main thread can handle signals; a trial runs in another thread, and the sweep stops it
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with stop_signals.forwarded(signals.request_stop.remote):
        yield


def _cause(error: WorkerGroupError, job: Job, state: PhaseState) -> Exception:
    # one line instead of the trace of every worker, if the data, the store or the configuration is at fault
    if state.error is not None:
        return UserError(state.error)
    for cause in error.worker_failures.values():
        if isinstance(cause, UserError):
            return cause
        # some writers, such as that of TensorBoard, give an error without the path
        if isinstance(cause, OSError) and cause.errno in NO_SPACE:
            return StoreError(
                f"{job.name}: cannot write to {job.artifact.uri}: {cause.strerror}; free some space there"
            )
    return next((cause for cause in error.worker_failures.values() if isinstance(cause, OSError)), error)


def _state(signals: Any) -> PhaseState:
    return ray.get(signals.state.remote())
