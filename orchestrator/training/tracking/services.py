"""Tracking services: a phase as a run of W&B and as a run of MLflow.

A resumed phase continues the same run, which is found by an id that is a function of the run's name and the phase."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.config import TrackingConfig
from orchestrator.config.flatten import flattened
from orchestrator.engine.artifact import fingerprint
from orchestrator.storage import files

# training waits for MLflow's answers: with its default limits, 7 tries of 120 s, it could wait for a quarter of an hour
MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
WANDB_LIMITS = {"init_timeout": 60.0, "finish_timeout": 120.0}

WANDB_TAG_CHARS = 64

Record = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PhaseRun:
    """A phase as trackers show it: the phase's name, its artifact's URI, and all settings of the run."""

    phase: str
    uri: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The name that the tracker shows."""
        return f"{self.settings['name']}/{self.phase}"

    @property
    def group(self) -> str:
        """The group of the run's phases. The trials of a sweep are named SWEEP/TRIAL and share the group SWEEP."""
        return self.settings["name"].split("/")[0]

    @property
    def is_trial(self) -> bool:
        """Whether the run is a trial of a sweep."""
        return "/" in self.settings["name"]

    @property
    def tags(self) -> dict[str, str]:
        """The tags to filter runs by, besides their settings; the selection of a control is `all` or `random`."""
        name, (group, _, trial) = self.settings["name"], self.settings["name"].partition("/")
        steps, seed = "+".join(self.settings["selection"]["steps"]), str(self.settings["training"]["seed"])
        tags = {"run": name, "group": group, "phase": self.phase, "selection": steps, "seed": seed}
        return tags | ({"trial": trial} if trial else {})

    @property
    def id(self) -> str:
        """A stable id: the same for a resumed phase, different for another run that reuses the phase."""
        return fingerprint([self.settings["name"], self.uri])


class Tracker(Protocol):
    """A tracking service's run of one phase. Any method may raise an error of the service's library."""

    last_step: int
    """the last step that the service has; 0 for a new run"""
    knows_its_steps: bool
    """False if `last_step` may be too low, because earlier sessions are not known"""

    def log(self, records: Sequence[Record]) -> None:
        """Send the numbers of logged steps, in order."""

    def conclude(self, record: Record) -> None:
        """Send the final numbers, except those that the run has already."""

    def attach(self, name: str, paths: Sequence[Path]) -> None:
        """Attach the report's files of the run `name`."""

    def close(self, *, is_failed: bool) -> None:
        """End the run."""


class Wandb:
    """A phase as a run of W&B."""

    def __init__(self, config: TrackingConfig, run: PhaseRun):
        import wandb

        limits: Any = {name: value for name, value in WANDB_LIMITS.items() if name in wandb.Settings.model_fields}
        self.run = wandb.init(
            project=config.wandb_project,
            id=run.id,
            name=run.name,
            group=run.group,
            job_type=run.phase,
            tags=[f"{name}: {value}"[:WANDB_TAG_CHARS] for name, value in run.tags.items()],
            config=run.settings,
            mode=config.wandb_mode,
            dir=os.environ.get("WANDB_DIR") or _folder(run.settings),
            resume="allow",
            # no metadata: they hold the command line, which may contain passwords
            settings=wandb.Settings(x_disable_meta=True, silent=True, **limits),
        )
        self.last_step = self.run.starting_step - 1 if self.run.starting_step else 0
        # an offline session does not know what earlier sessions have logged
        self.knows_its_steps = not self.run.offline

    def log(self, records: Sequence[Record]) -> None:
        """Send the numbers of logged steps, in order."""
        for record in records:
            self.run.log(tracked_values(record), step=int(record["step"]))

    def conclude(self, record: Record) -> None:
        """Send the final numbers, except those that the run has already."""
        new = {name: value for name, value in tracked_values(record).items() if self.run.summary.get(name) != value}
        if new:
            # W&B accepts no step before the last one of a resumed run
            self.run.log(new, step=max(int(record["step"]), self.run.step))

    def attach(self, name: str, paths: Sequence[Path]) -> None:
        """Attach the files as an artifact of type `report`."""
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", f"{name}-report"), type="report")
        for file in paths:
            artifact.add_file(str(file))
        self.run.log_artifact(artifact)

    def close(self, *, is_failed: bool) -> None:
        """End the run."""
        self.run.finish(exit_code=int(is_failed))


class Mlflow:
    """A phase as a run of MLflow, in the configured experiment."""

    knows_its_steps = True

    def __init__(self, config: TrackingConfig, run: PhaseRun):
        self.client = mlflow_client(config)
        experiment = self._experiment(config.mlflow_experiment)
        # found by a tag, as MLflow chooses the ids of its runs itself
        found = self.client.search_runs([experiment], f"tags.phase_id = '{run.id}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            tags = run.tags | {"phase_id": run.id}
            self.run_id = self.client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            self._log_params(run.settings)
        losses = self.client.get_metric_history(self.run_id, "train/loss") if found else []
        self.last_step = max((one.step for one in losses), default=0)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        try:
            return found.experiment_id if found else self.client.create_experiment(name)
        except MlflowException:
            # another trial has just created it
            return self.client.get_experiment_by_name(name).experiment_id

    def _log_params(self, settings: dict[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        params = [
            Param(key[:MAX_ENTITY_KEY_LENGTH], text[:MAX_PARAM_VAL_LENGTH])
            for key, text in flat_settings(settings).items()
        ]
        for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            self.client.log_batch(self.run_id, params=params[start : start + MAX_PARAMS_TAGS_PER_BATCH])

    def log(self, records: Sequence[Record]) -> None:
        """Send the numbers of logged steps, in order; after a failure, steps that were sent are not sent again."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        for record in records:
            step = int(record["step"])
            if step > self.last_step:
                self.client.log_batch(self.run_id, [Metric(*one, now, step) for one in tracked_values(record).items()])
                self.last_step = step

    def conclude(self, record: Record) -> None:
        """Send the final numbers, except those that the run has already."""
        from mlflow.entities import Metric

        known, now, step = self.client.get_run(self.run_id).data.metrics, int(1000 * time.time()), int(record["step"])
        new = [
            Metric(name, value, now, step) for name, value in tracked_values(record).items() if known.get(name) != value
        ]
        if new:
            self.client.log_batch(self.run_id, new)

    def attach(self, name: str, paths: Sequence[Path]) -> None:
        """Attach the files as artifacts of the run."""
        for file in paths:
            self.client.log_artifact(self.run_id, str(file))

    def close(self, *, is_failed: bool) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id, "FAILED" if is_failed else "FINISHED")


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as dotted keys, in the characters that MLflow allows, with values as text."""
    return {
        _allowed(key): value if isinstance(value, str) else json.dumps(value)
        for key, value in flattened(settings).items()
    }


def _allowed(name: str) -> str:
    # the characters that MLflow takes
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)


def tracked_values(record: Record) -> dict[str, float]:
    """Return a record's values by the names that trackers show: `train/NAME`, or `val/SET/METRIC` for evaluations."""
    return {
        _allowed(f"{'val' if '/' in key else 'train'}/{key.replace('@', '_at_')}"): value
        for key, value in record.items()
        if key != "step"
    }


def mlflow_client(config: TrackingConfig) -> Any:
    """Return the client of the configured server."""
    for name, value in MLFLOW_LIMITS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.mlflow_uri)


def _folder(settings: dict[str, Any]) -> str | None:
    # W&B writes to a local disk, and a worker's working folder is lost
    out = settings["out"]
    if out is None or not files.is_local(out):
        return None
    os.makedirs(out, exist_ok=True)
    return str(out)
