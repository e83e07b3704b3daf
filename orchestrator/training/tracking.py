"""Where the training curve goes: a JSON-lines file always; TensorBoard, W&B and MLflow as the config asks.

A phase is one run of a tracker, named RUN/PHASE, and a phase that is resumed goes on in the same. Metrics have
open_clip's names, `train/loss` and `val/SET/METRIC`. A tracker that cannot be reached is a mistake before the first
step and a warning after it: what it has missed it gets once it answers again."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator import store
from orchestrator.config import Config, TrackingConfig, without_password
from orchestrator.errors import UserError
from orchestrator.record import RunRecord, StageRecord
from orchestrator.training.trackers import Mlflow, PhaseRun, Record, Wandb, mlflow_client, named

FLUSH_SECONDS = 10.0
RETRY_SECONDS = 60.0
PHASES = ("pretrain", "finetune")
REPORT = ("report.html", "report.json")


class Curve:
    """The metrics of a training phase, one record a logged step, written whole so that any store will do."""

    def __init__(self, uri: str, *, first_step: int):
        """Goes on with the records before `first_step`: later ones belong to steps that were lost and come again."""
        self.uri = store.join(uri, "metrics.jsonl")
        lines = store.read(self.uri).decode().splitlines() if store.exists(self.uri) else []
        self.records = [record for record in map(json.loads, lines) if record["step"] <= first_step]
        self.flushed = time.monotonic()

    def log(self, record: dict[str, Any]) -> None:
        """Adds a record; the file follows at most `FLUSH_SECONDS` later."""
        self.records.append(record)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the file."""
        store.write(self.uri, "".join(json.dumps(record) + "\n" for record in self.records).encode())
        self.flushed = time.monotonic()


class Trackers:
    """The optional trackers of a phase; each gets the numbers of every logged step."""

    def __init__(
        self,
        config: TrackingConfig,
        *,
        uri: str,
        name: str,
        first_step: int,
        settings: dict[str, Any],
        warn: Callable[[str], None] = print,
    ):
        """Errors: `UserError` when a tracker cannot be reached before the first step."""
        self.tensorboard = _tensorboard(uri, first_step) if config.tensorboard else None
        self.outlets = []
        for title, tracker in _asked(config).items():
            try:
                self.outlets.append(
                    Outlet(title, tracker(config, PhaseRun(phase=name, uri=uri, settings=settings)), warn)
                )
            except Exception as error:
                if first_step == 0:
                    raise UserError(_unreachable(title, config, error)) from error
                warn(f"{name}: goes on without {title}: {_one_line(error)}")

    def log(self, record: Record) -> None:
        """Sends a record; `step` is its place, the rest are values."""
        if self.tensorboard is not None:
            for key, value in named(record).items():
                self.tensorboard.add_scalar(key, value, int(record["step"]))
        for outlet in self.outlets:
            outlet.log(record)

    def close(self) -> None:
        """Ends the trackers' runs; called while an exception is passed on they have failed."""
        is_failed = sys.exc_info()[0] is not None
        if self.tensorboard is not None:
            self.tensorboard.close()
        for outlet in self.outlets:
            outlet.close(is_failed=is_failed)


class Outlet:
    """A tracker that may fail at any time: what it did not take comes again with a later record."""

    def __init__(self, title: str, tracker: Wandb | Mlflow, warn: Callable[[str], None]):
        self.title, self.tracker, self.warn = title, tracker, warn
        self.missed: list[Record] = []
        self.failed: float | None = None

    def log(self, record: Record) -> None:
        """Sends the record with those before that were missed; steps that the tracker has are left out."""
        if record["step"] > self.tracker.last_step:
            self.missed.append(record)
        if self.failed is None or time.monotonic() - self.failed > RETRY_SECONDS:
            self._try(self._send)

    def close(self, *, is_failed: bool = False) -> None:
        """Sends what is left and ends the run."""
        self._try(self._send)
        self._try(lambda: self.tracker.close(is_failed=is_failed))

    def _send(self) -> None:
        if self.missed:
            self.tracker.log(self.missed)
        self.missed, self.failed = [], None

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 each library has errors of its own, and training is worth more
            if self.failed is None:
                self.warn(f"{self.title} does not answer, training goes on: {_one_line(error)}")
            self.failed = time.monotonic()


def check_installed(config: TrackingConfig) -> None:
    """Errors: `UserError` for a tracker that the config asks for and that is not installed."""
    for package, setting in (("wandb", config.wandb_project), ("mlflow", config.mlflow_uri)):
        if setting is not None and find_spec(package) is None:
            raise UserError(
                f"tracking asks for {package}, which is not installed: pip install 'orchestrator[{package}]'"
            )


def check_trackers(config: TrackingConfig) -> None:
    """Before hours of work. Errors: `UserError` for a tracker that is not installed or an MLflow that does not
    answer."""
    check_installed(config)
    if config.mlflow_uri is None:
        return
    try:
        mlflow_client(config).search_experiments(max_results=1)
    except Exception as error:
        raise UserError(_unreachable("MLflow", config, error)) from error


def attach_report(config: Config, out: str, record: RunRecord, told: Callable[[str], None]) -> None:
    """Gives the report of a finished run to its phases' runs, and the curves to those of phases that were reused.

    A tracker that fails is one line to `told`. TensorBoard's files are copied to `tensorboard/PHASE` in `out`."""
    settings = config.model_dump(mode="json")
    for stage in record.stages:
        if stage.name not in PHASES:
            continue
        events = stage.artifact.path("tensorboard")
        if config.tracking.tensorboard and store.exists(events):
            store.remove(store.join(out, "tensorboard", stage.name))
            store.copy(events, store.join(out, "tensorboard", stage.name))
        run = PhaseRun(phase=stage.name, uri=stage.uri, settings=settings)
        for title, tracker in _asked(config.tracking).items():
            try:
                _attach(tracker(config.tracking, run), record, stage, out)
            except Exception as error:  # noqa: BLE001 each library has errors of its own, and the run is done
                told(f"{title} has not got the report of {run.name}: {_one_line(error)}")


def _attach(tracker: Wandb | Mlflow, record: RunRecord, stage: StageRecord, out: str) -> None:
    try:
        if stage.reused:
            curve = Curve(stage.artifact.uri, first_step=sys.maxsize)
            tracker.log([one for one in curve.records if one["step"] > tracker.last_step])
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in REPORT]
            for file in files:
                file.write_bytes(store.read(store.join(out, file.name)))
            tracker.attach(record.name, files)
    finally:
        tracker.close(is_failed=False)


def _asked(config: TrackingConfig) -> dict[str, type[Wandb] | type[Mlflow]]:
    asked: dict[str, type[Wandb] | type[Mlflow]] = {}
    if config.wandb_project is not None:
        asked["W&B"] = Wandb
    if config.mlflow_uri is not None:
        asked["MLflow"] = Mlflow
    return asked


def _tensorboard(uri: str, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(store.join(uri, "tensorboard"), purge_step=first_step + 1)


def _unreachable(title: str, config: TrackingConfig, error: Exception) -> str:
    if title == "W&B":
        return f"W&B: {_one_line(error)}; log in with `wandb login` on every node, or set tracking.wandb_mode=offline"
    return f"tracking.mlflow_uri={without_password(str(config.mlflow_uri))} does not answer: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    text = without_password(str(error) or type(error).__name__)
    return text.strip().splitlines()[0]
