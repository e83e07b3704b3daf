"""What a stage's work costs, measured in the processes that do it; off unless a plan's probe turns it on.

A call that is measured runs twice and the second time counts: the first one loads libraries and opens connections,
which a stage over many parts does once and a probe over a few would take for work."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from orchestrator.engine import process_cache

Batch = TypeVar("Batch")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of CPU time, seconds in which a process held its place and did not compute (reading, mostly), seconds on
    a GPU; the resident memory in bytes of the largest process."""

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
        """For so many times the work: the seconds grow, the memory does not."""
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
    """What is put around the work of tasks and actors; travels to them. Without a `total` it does nothing."""

    total: Any = None

    def around(self, call: Callable[[Batch], Answer]) -> Callable[[Batch], Answer]:
        """The call, which must give the same when it runs twice, measured."""
        return self._measured(call) if self.total is not None else call

    def _measured(self, call: Callable[[Batch], Answer]) -> Callable[[Batch], Answer]:
        def measured(batch: Batch) -> Answer:
            call(batch)
            # a cache filled by the first call would save the second one reads that the work on another part needs
            process_cache.clear_all()
            _forget_peak()
            held, computed = time.perf_counter(), time.process_time()
            answer = call(batch)
            held, computed = time.perf_counter() - held, time.process_time() - computed
            cost = Cost(
                core_seconds=computed,
                waiting_seconds=max(0.0, held - computed),
                gpu_seconds=held if ray.get_gpu_ids() else 0.0,
                peak_bytes=peak_bytes(),
            )
            # told before the answer is: who has all answers has all costs
            ray.get(self.total.add.remote(cost))
            return answer

        return measured


class _Driver:
    meter = Meter()


def current_meter() -> Meter:
    """The driver's, to be handed to what it starts."""
    return _Driver.meter


@contextmanager
def metering() -> Iterator[Callable[[], Cost]]:
    """Measures the work that is started inside the block; gives what reads the sum so far."""
    total: Any = ray.remote(num_cpus=0)(_Sum).remote()
    _Driver.meter = Meter(total)

    def read() -> Cost:
        cost: Cost = ray.get(total.read.remote())
        return cost

    try:
        yield read
    finally:
        _Driver.meter = Meter()


def _forget_peak() -> None:
    # Ray gives a process to one stage after another; Linux lets it begin anew
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_bytes() -> int:
    """The resident memory of this process at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
