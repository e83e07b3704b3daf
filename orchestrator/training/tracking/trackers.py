"""The trackers of a phase: TensorBoard, W&B and MLflow, as configured.

A phase is one run of a tracker, named RUN/PHASE; a resumed phase continues the same run. Metrics have open_clip's
names, `train/loss` and `val/SET/METRIC`. A tracker that does not answer is an error before the first step and a warning
later. In a trial it is always a warning, because the sweep has checked it. A tracker gets the records that it missed
when it answers again, or at the end of the run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from orchestrator.config import TrackingConfig, without_password
from orchestrator.errors import UserError, first_line
from orchestrator.storage import files
from orchestrator.training.tracking.services import (
    Mlflow,
    PhaseRun,
    Record,
    Tracker,
    Wandb,
    mlflow_client,
    tracked_values,
)
from orchestrator.training.tracking.tensorboard import TensorBoard

logger = logging.getLogger(__name__)
RETRY_SECONDS = 60.0
# W&B's errors for a missing or refused login: a user's mistake, not an outage
NO_LOGIN = ("UsageError", "AuthenticationError")


class PhaseTrackers:
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
        """Start or continue the trackers' runs.

        Errors: `UserError` if a tracker does not answer before the first step, except in a trial."""
        events = files.join(uri, "tensorboard")
        self.tensorboard = TensorBoard(events, first_step=first_step) if config.tensorboard else None
        self.retrying: list[RetryingTracker] = []
        run = PhaseRun(phase=name, uri=uri, settings=settings)
        for title, tracker in configured(config).items():
            try:
                self.retrying.append(RetryingTracker(title, tracker(config, run), warn))
            except Exception as error:
                if first_step == 0 and (not run.is_trial or type(error).__name__ in NO_LOGIN):
                    raise UserError(_unreachable(title, config, error)) from error
                warn(f"{name}: training continues without {title}: {reason(error)}")

    def log(self, record: Record) -> None:
        """Send the numbers of a step; `step` is the step, the other entries are values."""
        if self.tensorboard is not None:
            self.tensorboard.log(int(record["step"]), tracked_values(record))
        for tracker in self.retrying:
            tracker.log(record)

    def close(self) -> None:
        """End the trackers' runs; they count as failed if an exception is being handled."""
        is_failed = sys.exc_info()[0] is not None
        if self.tensorboard is not None:
            self.tensorboard.close()
        for tracker in self.retrying:
            tracker.close(is_failed=is_failed)


class RetryingTracker:
    """A tracker that may fail at any time; it gets missed records together with a later one."""

    def __init__(self, title: str, tracker: Tracker, warn: Callable[[str], None]):
        self.title, self.tracker, self.warn = title, tracker, warn
        self.missed: list[Record] = []
        # when the last failure was, None since the last success
        self.failed: float | None = None

    def log(self, record: Record) -> None:
        """Send the record and earlier missed ones; steps that the tracker has already are left out."""
        if record["step"] > self.tracker.last_step:
            self.missed.append(record)
        if self.failed is None or time.monotonic() - self.failed > RETRY_SECONDS:
            self._try(self._send)

    def close(self, *, is_failed: bool = False) -> None:
        """Send the missed records and end the run."""
        self._try(self._send)
        self._try(lambda: self.tracker.close(is_failed=is_failed))

    def _send(self) -> None:
        if self.missed:
            self.tracker.log(self.missed)
        if self.failed is not None:
            logger.info("%s answers again", self.title)
        self.missed, self.failed = [], None

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 each library has its own errors, and training matters more
            if self.failed is None:
                self.warn(f"{self.title} does not answer, training continues: {reason(error)}")
            self.failed = time.monotonic()


def check_installed(config: TrackingConfig) -> None:
    """Check the packages of the configured trackers. Errors: `UserError` for one that is not installed."""
    for package, setting in (("wandb", config.wandb_project), ("mlflow", config.mlflow_uri)):
        if setting is not None and find_spec(package) is None:
            raise UserError(f"tracking needs the package {package}, which is not installed: pip install {package}")


def check_trackers(config: TrackingConfig) -> None:
    """Check the configured trackers before hours of work.

    Errors: `UserError` for a tracker that is not installed, or an MLflow server that does not answer."""
    check_installed(config)
    if config.mlflow_uri is None:
        return
    try:
        mlflow_client(config).search_experiments(max_results=1)
    except Exception as error:
        raise UserError(_unreachable("MLflow", config, error)) from error


def configured(config: TrackingConfig) -> dict[str, Callable[[TrackingConfig, PhaseRun], Tracker]]:
    """Return the configured tracking services by title."""
    services: dict[str, Callable[[TrackingConfig, PhaseRun], Tracker]] = {}
    if config.wandb_project is not None:
        services["W&B"] = Wandb
    if config.mlflow_uri is not None:
        services["MLflow"] = Mlflow
    return services


def reason(error: Exception) -> str:
    """Return the first line of a library's error, without passwords."""
    return without_password(first_line(error))


def _unreachable(title: str, config: TrackingConfig, error: Exception) -> str:
    if title == "W&B":
        return f"W&B: {reason(error)}; log in with `wandb login` on every node, or set tracking.wandb_mode=offline"
    return f"tracking.mlflow_uri={without_password(str(config.mlflow_uri))} does not answer: {reason(error)}"
