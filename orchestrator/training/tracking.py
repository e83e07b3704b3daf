"""Where the training curve goes: a JSON-lines file always; TensorBoard, W&B and MLflow as the config asks."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from typing import Any

from orchestrator import store
from orchestrator.config import TrackingConfig
from orchestrator.errors import UserError

FLUSH_SECONDS = 10.0


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

    def __init__(self, config: TrackingConfig, *, uri: str, name: str, first_step: int, settings: dict[str, Any]):
        self.name = name
        self.tensorboard = _tensorboard(uri, first_step) if config.tensorboard else None
        self.wandb = _wandb(config.wandb_project, name, settings) if config.wandb_project else None
        self.mlflow = _mlflow(config.mlflow_uri, name) if config.mlflow_uri else None

    def log(self, record: dict[str, float]) -> None:
        """Sends a record; `step` is its place, the rest are values."""
        values = {key: value for key, value in record.items() if key != "step"}
        step = int(record["step"])
        if self.tensorboard is not None:
            for key, value in values.items():
                self.tensorboard.add_scalar(f"{self.name}/{key}", value, step)
        if self.wandb is not None:
            self.wandb.log(values, step=step)
        if self.mlflow is not None:
            self.mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        """Ends the trackers' runs."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.mlflow is not None:
            self.mlflow.end_run()


def _tensorboard(uri: str, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(store.join(uri, "tensorboard"), purge_step=first_step + 1)


def _wandb(project: str, name: str, settings: dict[str, Any]) -> Any:
    import wandb

    return wandb.init(project=project, name=name, config=settings, resume="allow")


def _mlflow(uri: str, name: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.start_run(run_name=name)
    return mlflow


def check_installed(config: TrackingConfig) -> None:
    """Errors: `UserError` for a tracker that the config asks for and that is not installed."""
    for package, setting in (("wandb", config.wandb_project), ("mlflow", config.mlflow_uri)):
        if setting is not None and find_spec(package) is None:
            raise UserError(
                f"tracking asks for {package}, which is not installed: pip install 'orchestrator[{package}]'"
            )
