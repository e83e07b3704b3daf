"""The line between a phase's workers and its driver, which outlives any restart of the workers."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAME = "ticker-"
POLL_SECONDS = 0.5
# a phase that waits for its workers has no step at which to stop
LONGEST_STOP = 300.0


@dataclass
class Told:
    """What was said so far: rank 0's latest numbers, those of evaluations on the way, what the user should know, a
    mistake that no retry mends, whether the driver wants the phase to stop, and the step at which it did."""

    latest: dict[str, float] = field(default_factory=dict)
    measured: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    mistake: str | None = None
    stop: bool = False
    stopped_at: int | None = None


@ray.remote(num_cpus=0)
class Ticker:
    """Keeps what workers and driver tell each other."""

    def __init__(self) -> None:
        self.told = Told()

    def tick(self, record: dict[str, float]) -> None:
        """Takes the numbers of a logged step."""
        self.told.latest = record
        # what is measured is named SET/METRIC
        if any("/" in name for name in record):
            self.told.measured.append(record)

    def warn(self, message: str) -> None:
        """Takes a line for the user."""
        self.told.warnings.append(message)

    def refuse(self, message: str) -> None:
        """Takes a mistake that no retry mends; the first is the cause of the others."""
        self.told.mistake = self.told.mistake or message

    def stop(self) -> None:
        """The driver's wish: a checkpoint, then the end."""
        self.told.stop = True

    def stopped(self, step: int) -> None:
        """The workers' answer to it."""
        self.told.stopped_at = step

    def read(self) -> Told:
        """All of it."""
        return self.told


def start_ticker() -> Any:
    """A ticker on the driver's node: when that is gone the phase ends anyway, when another goes it goes on."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # by a name: a sweep asks the phases of its trials, which other processes drive
    name = f"{NAME}{uuid.uuid4().hex}"
    return Ticker.options(scheduling_strategy=here, name=name).remote()  # type: ignore[attr-defined]


def stop_phases() -> None:
    """Asks every phase that this command's processes drive to stop, and waits until each has written a checkpoint or
    has ended; a cluster that is gone has none."""
    if not ray.is_initialized():
        return
    try:
        tickers = [ray.get_actor(name) for name in ray.util.list_named_actors() if name.startswith(NAME)]
    except (RayError, ValueError):
        return
    for ticker in tickers:
        ticker.stop.remote()
    latest = time.monotonic() + LONGEST_STOP
    while not all(map(_has_stopped, tickers)) and time.monotonic() < latest:
        time.sleep(POLL_SECONDS)


def _has_stopped(ticker: Any) -> bool:
    try:
        told = ray.get(ticker.read.remote())
    except RayError:
        # it goes with its phase
        return True
    return told.stopped_at is not None or told.mistake is not None
