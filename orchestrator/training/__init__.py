"""Training as a stage: one phase (pre-training, or the fine-tune epoch) as a Ray Train run of DDP workers.

The artifact is the model folder that open_clip loads, the curve, and Ray Train's checkpoints until it is done. What
the workers do is in `worker.py`; the order they see pairs in is a function (`stream.py`), so a phase that was killed
goes on from its last checkpoint with the very next global batch."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator import cluster, store
from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog
from orchestrator.config import Config, PhaseConfig
from orchestrator.errors import UserError
from orchestrator.keeplist import KeepList
from orchestrator.progress import Display, StageProgress
from orchestrator.source import Source
from orchestrator.stage import Stage
from orchestrator.training.stream import Stream
from orchestrator.training.tracking import check_installed
from orchestrator.training.worker import Job, train_worker

VERSION = 1
POLL_SECONDS = 0.5
CHECKPOINTS_KEPT = 2
# how many workers there are, how they read and where they report leaves the result what it is
NOT_IN_FINGERPRINT = {
    "num_workers",
    "cpus_per_worker",
    "max_failures",
    "checkpoint_every_steps",
    "log_every_steps",
    "max_bad_pairs",
    "epochs",
    "samples",
    "lr",
    "warmup_steps",
    "warmup_epochs",
}


@ray.remote(num_cpus=0)
class Ticker:
    """Where rank 0 leaves its latest numbers for the driver, and any worker its user's mistake."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.mistake: str | None = None

    def tick(self, record: dict[str, float]) -> None:
        """Takes the numbers of a logged step."""
        self.latest = record

    def refuse(self, message: str) -> None:
        """Takes a mistake that no retry mends."""
        self.mistake = message

    def read(self) -> tuple[dict[str, float], str | None]:
        """The latest numbers and the mistake, if any."""
        return self.latest, self.mistake


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What tells one phase from the other: its name, its length and speed, its pairs, the weights it starts from."""

    name: str
    config: PhaseConfig
    keep: Artifact
    start: Artifact | None


def training_stage(config: Config, phase: Phase, source: Source, catalog: Catalog) -> Stage:
    """The stage of a phase; nothing is computed before its `build`."""
    shared = config.training.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT)
    length = phase.config.model_dump(mode="json", include={"lr", "warmup_steps", "warmup_epochs"})
    length |= {"samples": phase.config.samples} if phase.config.samples else {"epochs": phase.config.epochs}
    artifact = Artifact.of(
        config.store,
        phase.name,
        version=VERSION,
        catalog=catalog.artifact,
        keep=phase.keep,
        start=phase.start and phase.start.fingerprint,
        model=config.model.model_dump(mode="json"),
        shared=shared,
        length=length,
    )

    def build(display: Display) -> Artifact:
        return _train(config, phase, source, catalog, artifact, display)

    epochs = f"{phase.config.epochs} epoch{'s' if phase.config.epochs > 1 else ''}"
    how_long = f"{phase.config.samples:,} samples" if phase.config.samples else epochs
    what = config.model.name or "the configured model"
    return Stage(
        name=phase.name,
        does=f"train {what} for {how_long} at lr {phase.config.lr:g}, batches of {config.training.global_batch_size:,}",
        artifact=artifact,
        build=build,
        epochs=phase.config.epochs,
        samples=phase.config.samples,
        on_whole_pool=phase.start is not None,
    )


def phase_stream(config: Config, phase: Phase) -> Stream:
    """The order of a phase. Errors: `UserError` when the pool keeps fewer pairs than a global batch."""
    training = config.training
    kept_per_part = KeepList(phase.keep).kept_per_part
    return Stream(
        kept_per_part=kept_per_part,
        num_samples=phase.config.samples or phase.config.epochs * sum(kept_per_part),
        global_batch_size=training.global_batch_size,
        num_lanes=training.lanes,
        window=training.window,
        seed=training.seed,
    )


def _train(
    config: Config, phase: Phase, source: Source, catalog: Catalog, artifact: Artifact, display: Display
) -> Artifact:
    started = time.monotonic()
    check_installed(config.tracking)
    stream = phase_stream(config, phase)
    num_workers = cluster.num_train_workers(config.training.num_workers, lanes=config.training.lanes)
    use_gpu = cluster.num_gpus() > 0
    ticker: Any = Ticker.remote()  # type: ignore[attr-defined]
    job = Job(
        config=config,
        phase=phase.config,
        name=phase.name,
        artifact=artifact,
        start_uri=phase.start.path("model") if phase.start else None,
        source=source,
        parts=tuple(source.parts()),
        catalog=catalog,
        keep=KeepList(phase.keep),
        stream=stream,
        ticker=ticker,
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=_worker_resources(config, use_gpu)
        ),
        run_config=RunConfig(
            name="train",
            **_storage(artifact),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            failure_config=FailureConfig(max_failures=config.training.max_failures),
        ),
    )
    with display.stage(phase.name, unit="samples", total=stream.num_samples) as progress:
        _fit(trainer, ticker, progress)
        summary = store.read_json(artifact.path("summary.json"))
        progress.update(stream.num_samples, note=f"loss {summary['loss']:.3f}")
    artifact.publish(totals={**summary, "num_workers": num_workers}, parts=[], seconds=time.monotonic() - started)
    return artifact


def _worker_resources(config: Config, use_gpu: bool) -> dict[str, float]:
    return {"CPU": float(config.training.cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})


def _storage(artifact: Artifact) -> dict[str, Any]:
    # Ray Train takes a pyarrow file system; fsspec's own is wrapped, so that one set of credentials serves all
    if store.is_local(artifact.uri):
        return {"storage_path": artifact.path("ray")}
    fs, path = store.filesystem(artifact.path("ray"))
    return {"storage_path": path, "storage_filesystem": pafs.PyFileSystem(pafs.FSSpecHandler(fs))}


def _fit(trainer: TorchTrainer, ticker: Any, progress: StageProgress) -> None:
    stopped = threading.Event()

    def follow() -> None:
        while not stopped.wait(POLL_SECONDS):
            latest, _ = ray.get(ticker.read.remote())
            if latest:
                progress.update(
                    int(latest["samples_seen"]), note=f"loss {latest['loss']:.3f}, step {latest['step']:.0f}"
                )

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        trainer.fit()
    except WorkerGroupError as error:
        mistakes = [cause for cause in error.worker_failures.values() if isinstance(cause, UserError)]
        raise (mistakes[0] if mistakes else error) from None
    finally:
        stopped.set()
        follower.join()
    mistake = ray.get(ticker.read.remote())[1]
    if mistake is not None:
        raise UserError(mistake)
