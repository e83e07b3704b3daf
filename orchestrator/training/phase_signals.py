"""Signals between a phase's workers and its driver: an actor that survives every restart of the workers."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.engine.log import attached

ACTOR_PREFIX = "phase-signals-"
POLL_SECONDS = 0.5
# the longest wait for phases to stop: a phase that waits for its workers takes no step at which it could stop
LONGEST_STOP = 300.0


@dataclass
class PhaseState:
    """What workers and driver of a phase have signalled so far.

    `latest`: rank 0's numbers of the last logged step; `evaluations`: those with evaluation metrics; `warnings`: lines
    for the user; `error`: a user's mistake, which no retry can fix; `stop_requested`: the driver asked the workers to
    stop; `stopped_at`: the step after which they stopped; `num_starts`: how often a worker group has started."""

    latest: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    stop_requested: bool = False
    stopped_at: int | None = None
    num_starts: int = 0


class LogLine(NamedTuple):
    """A record of a worker's log: the logger's name, the level, and the text with its traceback if there is one."""

    logger: str
    level: int
    text: str


@ray.remote(num_cpus=0)
class PhaseSignals:
    """Keeps the state of a phase, and the workers' log until the driver takes it."""

    def __init__(self) -> None:
        self._state = PhaseState()
        self._log: list[LogLine] = []
        self._passed = set[str]()

    def start_group(self) -> int:
        """Count the start of a worker group and return the count; what an earlier group passed is forgotten."""
        self._state.num_starts += 1
        self._passed.clear()
        return self._state.num_starts

    def mark_passed(self, point: str) -> None:
        """Note that rank 0 has passed a point of the training."""
        self._passed.add(point)

    def has_passed(self, point: str) -> bool:
        """Return whether rank 0 has passed a point of the training."""
        return point in self._passed

    def report(self, record: dict[str, float]) -> None:
        """Keep the numbers of a logged step."""
        self._state.latest = record
        # evaluation metrics are named SET/METRIC
        if any("/" in name for name in record):
            self._state.evaluations.append(record)

    def warn(self, message: str) -> None:
        """Keep a line for the user."""
        self._state.warnings.append(message)

    def fail(self, message: str) -> None:
        """Keep a user's mistake; only the first one, as it is the cause of later ones."""
        self._state.error = self._state.error or message

    def request_stop(self) -> None:
        """Ask the workers to write a checkpoint and stop."""
        self._state.stop_requested = True
        # logged here, not by the driver: it calls this from a signal handler, which must not write to files
        self.log(LogLine(__name__, logging.WARNING, "stop requested: the workers write a checkpoint and stop"))

    def confirm_stop(self, step: int) -> None:
        """Note that the workers stopped after `step` steps."""
        self._state.stopped_at = step

    def state(self) -> PhaseState:
        """Return everything signalled so far."""
        return self._state

    def log(self, line: LogLine) -> None:
        """Keep a line of a worker's log for the driver."""
        self._log.append(line)

    def take_log(self) -> list[LogLine]:
        """Return the log lines since the last call and forget them."""
        taken, self._log = self._log, []
        return taken


class _ForwardingHandler(logging.Handler):
    """Sends log records of a worker to the driver."""

    def __init__(self, signals: Any, rank: int, level: str):
        super().__init__(level)
        if rank > 0:
            # only problems: the progress of other ranks is that of rank 0
            self.setLevel(max(self.level, logging.WARNING))
        self.signals = signals
        self.setFormatter(logging.Formatter(f"worker {rank}: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        sent = self.signals.log.remote(LogLine(record.name, record.levelno, self.format(record)))
        if record.levelno >= logging.ERROR:
            # the process may end right after an error, and would lose the line; without a driver nobody reads it
            with suppress(RayError):
                ray.get(sent)


@contextmanager
def forwarded_log(signals: Any, rank: int, level: str) -> Iterator[None]:
    """Send a worker's log and Python's warnings to the driver's log, inside the block.

    Rank 0 sends records of the `level` and above, other ranks only warnings and errors."""
    with attached(_ForwardingHandler(signals, rank, level), level):
        yield


def wait_for_first(signals: Any, point: str, rank: int) -> None:
    """Wait until rank 0 has called it for the point; every rank calls it.

    Not a barrier: NCCL ends a worker that waits in a collective operation for half an hour, and rank 0 may evaluate or
    write for longer. If rank 0 ends, Ray Train ends the others."""
    if rank == 0:
        ray.get(signals.mark_passed.remote(point))
    while not ray.get(signals.has_passed.remote(point)):
        time.sleep(POLL_SECONDS)


def start_signals() -> Any:
    """Start the actor on the driver's node: the loss of another node does not end it, and the driver needs its own."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # with a name: a sweep stops the phases of its trials, which other processes drive
    name = f"{ACTOR_PREFIX}{uuid.uuid4().hex}"
    return PhaseSignals.options(scheduling_strategy=here, name=name).remote()  # type: ignore[attr-defined]


def stop_phases() -> None:
    """Ask every phase of this command's processes to stop; wait until each has written a checkpoint or has ended.

    Without a cluster there are no phases."""
    if not ray.is_initialized():
        return
    try:
        phases = [ray.get_actor(name) for name in ray.util.list_named_actors() if name.startswith(ACTOR_PREFIX)]
    except (RayError, ValueError):
        return
    for signals in phases:
        signals.request_stop.remote()
    latest = time.monotonic() + LONGEST_STOP
    while not all(map(_has_stopped, phases)) and time.monotonic() < latest:
        time.sleep(POLL_SECONDS)


def _has_stopped(signals: Any) -> bool:
    try:
        state = ray.get(signals.state.remote())
    except RayError:
        # the actor ends with its phase
        return True
    return state.stopped_at is not None or state.error is not None
