"""MLflow's server as a process, the records of W&B's offline files, and a tracked phase with its results."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.config import Config, ZeroShotConfig
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.storage import files
from orchestrator.training.tracking.curve import Curve
from orchestrator.training.tracking.report import attach_report
from orchestrator.training.tracking.trackers import PhaseTrackers
from tests.support.commands import environment

BLOCK = 32 * 1024


class Server:
    """An MLflow tracking server in a process; it can be killed and started again with the same address and data."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        places = (
            f"--backend-store-uri sqlite:///{self.folder}/mlflow.db --artifacts-destination {self.folder}/artifacts"
        )
        command = f"{sys.executable} -m mlflow server {places} --host 127.0.0.1 --port {self.port} --workers 1"
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                shlex.split(command),
                stdout=log,
                stderr=log,
                # five processes for jobs that no test starts, which would outlive the server
                env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while not self.answers():
            assert time.monotonic() < end
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def runs(self, experiment: str = "orchestrator") -> dict[str, Any]:
        """Return the runs of the experiment, by name."""
        (found,) = [one for one in self.client.search_experiments() if one.name == experiment]
        runs = self.client.search_runs([found.experiment_id])
        assert len({run.info.run_name for run in runs}) == len(runs), "one run per phase"
        return {run.info.run_name: run for run in runs}

    def steps(self, run: Any, key: str = "train/loss") -> list[int]:
        return [one.step for one in self.client.get_metric_history(run.info.run_id, key)]

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)


def wandb_runs(out: str | None) -> dict[str, list[Any]]:
    """Return what W&B wrote for `wandb sync`: the records of every session by folder, oldest first."""
    end = time.monotonic() + 20
    while True:
        paths = sorted(Path(str(out)).glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
        found = {path.parent.name: list(wandb_records(path.read_bytes())) for path in paths}
        # W&B's process may write a moment after `finish`
        if all(of_kind(records, "exit") for records in found.values()) or time.monotonic() > end:
            return found
        time.sleep(0.1)


def wandb_records(data: bytes) -> Iterator[Any]:
    """Yield the records of a `.wandb` file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, whole = 7, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            parsed = Record()
            parsed.ParseFromString(whole)
            yield parsed
            whole = b""


def of_kind(records: list[Any], kind: str) -> list[Any]:
    return [getattr(one, kind) for one in records if one.WhichOneof("record_type") == kind]


def wandb_steps(records: list[Any], key: str = "train/loss") -> list[int]:
    """Return the steps at which a run has the metric."""
    history = of_kind(records, "history")
    return [one.step.num for one in history if key in {item.nested_key[0] for item in one.item}]


def record(step: int) -> dict[str, float]:
    return {"step": step, "loss": 4.0 / step, "lr": 1e-3, "samples_seen": 16.0 * step}


def train(config: Config, uri: str, steps: range, *, phase: str = "pretrain", **more: Any) -> PhaseTrackers:
    """Log the steps of a phase, as a worker does."""
    curve = Curve(uri, first_step=steps.start)
    trackers = start(config, uri, phase=phase, first_step=steps.start, **more)
    for step in range(steps.start + 1, steps.stop + 1):
        curve.log(record(step))
        trackers.log(record(step))
    curve.flush()
    trackers.close()
    return trackers


def start(config: Config, uri: str, *, phase: str = "pretrain", first_step: int = 0, **more: Any) -> PhaseTrackers:
    settings = config.model_dump(mode="json")
    return PhaseTrackers(config.tracking, uri=uri, name=phase, first_step=first_step, settings=settings, **more)


def evaluated(config: Config, phases: dict[str, str], steps: int) -> tuple[Config, StageRecord]:
    """Return the config with an evaluation set, and the evaluation of phases with `steps` steps."""
    table = {
        "results": [{"key": "flickr30k", "metric": "mean_recall@1", "value": 0.75}],
        "averages": [
            {"name": "ImageNet dist. shifts", "value": None},
            {"name": "all tasks", "value": 0.75},
        ],
    }
    shot = {"top1": 0.5, "top5": 1.0, "mean_per_class": 0.25, "num_images": 8}
    made = Artifact.of(config.store, "evaluation", version=1, models=list(phases))
    made.publish(totals={key: {"zero_shot": shot, "tasks": table} for key in phases}, parts=[], seconds=1.0)
    for phase, uri in phases.items():
        Artifact(phase, uri, {}).publish(totals={"steps": steps}, parts=[], seconds=1.0)
    settings = config.evaluation.model_copy(update={"zero_shot": ZeroShotConfig(uri="zs.tar")})
    stage = StageRecord(
        name="evaluate", role=Role.EVALUATE, kind="evaluation", uri=made.uri, made_from={}, reused=False, seconds=1.0
    )
    return config.model_copy(update={"evaluation": settings}), stage


RESULTS = {
    "val/zero_shot/top1": 0.5,
    "val/zero_shot/top5": 1.0,
    "val/zero_shot/mean_per_class": 0.25,
    "val/flickr30k/mean_recall_at_1": 0.75,
    "val/average/all tasks": 0.75,
}


def finish(config: Config, phases: dict[str, str], *more: StageRecord, reused: bool = False) -> list[str]:
    """Attach the report of a run with these phases, as the driver does; return the warnings."""
    out = str(config.out)
    for name in ("report.html", "report.json"):
        files.write(files.join(out, name), f"{name} of {config.name}".encode())
    stages = [
        StageRecord(name=name, role=Role(name), kind=name, uri=uri, made_from={}, reused=reused, seconds=1.0)
        for name, uri in phases.items()
    ] + list(more)
    told: list[str] = []
    made = RunRecord(
        name=config.name, verb="run", config={}, stages=stages, versions={}, started="now", wall_seconds=1.0
    )
    attach_report(config, out, made, told.append)
    return told
