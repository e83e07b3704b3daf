"""Where the training curve goes: a JSON-lines file always; TensorBoard, W&B and MLflow as the config asks.

A phase is one run of a tracker, named RUN/PHASE, and a phase that is resumed goes on in the same. Metrics have
open_clip's names, `train/loss` and `val/SET/METRIC`; what the evaluation of the finished run measures joins them at the
phase's last step. A tracker that cannot be reached is a mistake before the first step and a warning after it, and in a
trial, whose sweep has reached it: what it has missed it gets once it answers again, or at the run's end."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.config import Config, TrackingConfig, without_password
from orchestrator.engine.role import TRAINING_ROLES
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.errors import UserError
from orchestrator.evaluation.sets import named_results
from orchestrator.storage import files
from orchestrator.training.tensorboard import TensorBoard
from orchestrator.training.trackers import Mlflow, PhaseRun, Record, Wandb, mlflow_client, named

FLUSH_SECONDS = 10.0
# of the time: all ranks wait while the curve is written, and it is written whole
FLUSH_SHARE = 0.01
RETRY_SECONDS = 60.0
REPORT = ("report.html", "report.json")
LAST_EVENTS = "events.out.tfevents.9999999999.results"
# W&B's for a login that is missing or refused: no outage, and nothing that passes
NO_LOGIN = ("UsageError", "AuthenticationError")


class Curve:
    """The metrics of a training phase, one record a logged step, written whole so that any store will do."""

    def __init__(self, uri: str, *, first_step: int):
        """Goes on with the records before `first_step`: later ones belong to steps that were lost and come again."""
        self.uri = files.join(uri, "metrics.jsonl")
        lines = files.read(self.uri).decode().splitlines() if files.exists(self.uri) else []
        self.records = [record for record in map(json.loads, lines) if record["step"] <= first_step]
        self.encoded, self.num_encoded = bytearray(), 0
        self.flushed, self.flush_seconds = time.monotonic(), 0.0

    def log(self, record: dict[str, Any]) -> None:
        """Adds a record; the file follows at most `FLUSH_SECONDS` later, or once writing it, by what that took last
        time, is no more than `FLUSH_SHARE` of the time."""
        self.records.append(record)
        if time.monotonic() - self.flushed > max(FLUSH_SECONDS, self.flush_seconds / FLUSH_SHARE):
            self.flush()

    def flush(self) -> None:
        """Writes the file."""
        began = time.monotonic()
        # what was encoded before is kept: of a long phase it is nearly everything
        new = self.records[self.num_encoded :]
        self.encoded += "".join(json.dumps(record) + "\n" for record in new).encode()
        self.num_encoded = len(self.records)
        files.write(self.uri, bytes(self.encoded))
        self.flushed = time.monotonic()
        self.flush_seconds = self.flushed - began


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
        """Errors: `UserError` when a tracker cannot be reached before the first step, but for a trial's outage."""
        place = files.join(uri, "tensorboard")
        self.tensorboard = TensorBoard(place, first_step=first_step) if config.tensorboard else None
        self.outlets = []
        run = PhaseRun(phase=name, uri=uri, settings=settings)
        for title, tracker in _asked(config).items():
            try:
                self.outlets.append(Outlet(title, tracker(config, run), warn))
            except Exception as error:
                if first_step == 0 and (not run.is_trial or type(error).__name__ in NO_LOGIN):
                    raise UserError(_unreachable(title, config, error)) from error
                warn(f"{name}: goes on without {title}: {_one_line(error)}")

    def log(self, record: Record) -> None:
        """Sends a record; `step` is its place, the rest are values."""
        if self.tensorboard is not None:
            self.tensorboard.log(int(record["step"]), named(record))
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
            raise UserError(f"tracking asks for {package}, which is not installed: pip install {package}")


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
    """Gives the report of a finished run and the evaluation's numbers to its phases' runs, with what those lack of the
    curves: all of it where the phase was reused.

    A tracker that fails is one line to `told`. TensorBoard's files are copied to `tensorboard/PHASE` in `out`, where
    the settings and the evaluation's numbers join them."""
    settings = config.model_dump(mode="json")
    for stage in record.stages:
        if stage.role not in TRAINING_ROLES:
            continue
        results = _results(config, record, stage)
        events = stage.artifact.path("tensorboard")
        if config.tracking.tensorboard and files.exists(events):
            place = files.join(out, "tensorboard", stage.role.value)
            files.remove(place)
            files.copy(events, place)
            _add_to_tensorboard(place, settings, results)
        run = PhaseRun(phase=stage.role.value, uri=stage.uri, settings=settings)
        for title, tracker in _asked(config.tracking).items():
            try:
                _attach(tracker(config.tracking, run), record, stage, results, out)
            except Exception as error:  # noqa: BLE001 each library has errors of its own, and the run is done
                told(f"{title} has not got the report of {run.name}: {_one_line(error)}")


def _results(config: Config, record: RunRecord, stage: StageRecord) -> Record:
    # what was measured of the phase's model, at its last step; nothing without an evaluation
    for evaluation in record.of_kind("evaluation"):
        if stage.role.value in evaluation.totals:
            values = named_results(config.evaluation, evaluation.totals[stage.role.value])
            return {"step": stage.artifact.totals["steps"], **values}
    return {}


def _add_to_tensorboard(uri: str, settings: dict[str, Any], results: Record) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            writer.add_text("config", f"```json\n{json.dumps(settings, indent=1)}\n```")
            for name, value in named(results).items():
                writer.add_scalar(name, value, int(results["step"]))
        # TensorBoard reads files in the order of their names, and a later session hides steps of those before it
        (events,) = Path(folder).iterdir()
        files.copy(str(events), files.join(uri, LAST_EVENTS))


def _attach(tracker: Wandb | Mlflow, record: RunRecord, stage: StageRecord, results: Record, out: str) -> None:
    try:
        # a session of W&B's that is offline does not know what an earlier one has logged
        if stage.reused or not (isinstance(tracker, Wandb) and tracker.run.offline):
            curve = Curve(stage.artifact.uri, first_step=sys.maxsize)
            tracker.log([one for one in curve.records if one["step"] > tracker.last_step])
        if results:
            tracker.conclude(results)
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, name) for name in REPORT]
            for file in paths:
                file.write_bytes(files.read(files.join(out, file.name)))
            tracker.attach(record.name, paths)
    finally:
        tracker.close(is_failed=False)


def _asked(config: TrackingConfig) -> dict[str, type[Wandb] | type[Mlflow]]:
    asked: dict[str, type[Wandb] | type[Mlflow]] = {}
    if config.wandb_project is not None:
        asked["W&B"] = Wandb
    if config.mlflow_uri is not None:
        asked["MLflow"] = Mlflow
    return asked


def _unreachable(title: str, config: TrackingConfig, error: Exception) -> str:
    if title == "W&B":
        return f"W&B: {_one_line(error)}; log in with `wandb login` on every node, or set tracking.wandb_mode=offline"
    return f"tracking.mlflow_uri={without_password(str(config.mlflow_uri))} does not answer: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    text = without_password(str(error) or type(error).__name__)
    return text.strip().splitlines()[0]
