"""The cost of a stage's work, measured in the processes that do it; off unless a plan's probe turns it on.

A measured call runs twice and only the second time counts. The first one loads libraries and opens connections: a stage
over many parts does that once, and a probe over a few parts must not count it as work."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from orchestrator.engine import process_cache

Batch = TypeVar("Batch")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of work.

    `core_seconds` is CPU time; `waiting_seconds` is time in which a process held a core but did not compute (mostly
    reads); `gpu_seconds` is time with a GPU. `peak_bytes` is the peak resident memory of the largest process."""

    core_seconds: float = 0.0
    waiting_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            core_seconds=self.core_seconds + other.core_seconds,
            waiting_seconds=self.waiting_seconds + other.waiting_seconds,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
        )

    def times(self, factor: float) -> Cost:
        """Return the cost of `factor` times the work: seconds grow, memory does not."""
        return Cost(
            core_seconds=self.core_seconds * factor,
            waiting_seconds=self.waiting_seconds * factor,
            gpu_seconds=self.gpu_seconds * factor,
            peak_bytes=self.peak_bytes,
        )


class _Sum:
    def __init__(self) -> None:
        self.total = Cost()

    def add(self, cost: Cost) -> None:
        self.total += cost

    def read(self) -> Cost:
        return self.total


@dataclass(frozen=True)
class Meter:
    """Measures the work of tasks and actors, which get it as an argument.

    `total` is the actor that adds up the costs. Without it, the meter does nothing."""

    total: Any = None

    def around(self, call: Callable[[Batch], Answer]) -> Callable[[Batch], Answer]:
        """Return the call, measured. It must give the same answer when it runs twice."""
        return Measured(call, self.total) if self.total is not None else call


@dataclass(frozen=True)
class Measured(Generic[Batch, Answer]):
    """A call that runs twice and adds the cost of the second run to the sum in the actor `total`."""

    call: Callable[[Batch], Answer]
    total: Any

    def __call__(self, batch: Batch) -> Answer:
        """Return the call's answer."""
        self.call(batch)
        # a cache filled by the first call would save the second one reads that the work on another part needs
        process_cache.clear_all()
        _reset_peak()
        held, computed = time.perf_counter(), time.process_time()
        answer = self.call(batch)
        held, computed = time.perf_counter() - held, time.process_time() - computed
        cost = Cost(
            core_seconds=computed,
            waiting_seconds=max(0.0, held - computed),
            gpu_seconds=held if ray.get_gpu_ids() else 0.0,
            peak_bytes=peak_bytes(),
        )
        # the cost is added before the answer returns: a driver that has all answers then has all costs
        ray.get(self.total.add.remote(cost))
        return answer


# The meter of the surrounding `metering()` block. It is set in the driver's thread that builds the stages and read
# there, when a stage starts its tasks; processes get the meter as an argument.
_METER: ContextVar[Meter] = ContextVar("meter", default=Meter())  # noqa: B039 a meter is immutable


def current_meter() -> Meter:
    """Return the meter to pass to tasks and actors: one that does nothing outside of a `metering()` block."""
    return _METER.get()


@contextmanager
def metering() -> Iterator[Callable[[], Cost]]:
    """Measure the work that this thread starts inside the block; yield a function that returns the sum so far."""
    total: Any = ray.remote(num_cpus=0)(_Sum).remote()
    token = _METER.set(Meter(total))

    def read() -> Cost:
        cost: Cost = ray.get(total.read.remote())
        return cost

    try:
        yield read
    finally:
        _METER.reset(token)


def _reset_peak() -> None:
    # Ray reuses a process for several stages. Writing 5 to this file makes Linux reset the peak of its resident memory
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_bytes() -> int:
    """Return the peak of this process's resident memory, in bytes."""
    # Linux gives KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
