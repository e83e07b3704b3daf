"""The line between a phase's workers and its driver, which outlives any restart of the workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


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
    return Ticker.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
