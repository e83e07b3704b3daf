"""Rank 0's outlets for the numbers of a phase, and the pace of its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from orchestrator.engine.metering import peak_bytes
from orchestrator.training.job import Job
from orchestrator.training.tracking import Curve, Trackers


class Log:
    """The curve, the trackers and the driver's display, all told the same."""

    def __init__(self, job: Job, first_step: int):
        self.curve = Curve(job.artifact.uri, first_step=first_step)
        self.trackers = Trackers(
            job.config.tracking,
            uri=job.artifact.uri,
            name=job.name,
            first_step=first_step,
            settings=job.config.model_dump(mode="json"),
            warn=lambda line: job.ticker.warn.remote(line),
        )
        self.ticker = job.ticker

    def add(self, record: dict[str, float]) -> None:
        """Takes the numbers of a logged step."""
        self.curve.log(record)
        self.trackers.log(record)
        self.ticker.tick.remote(record)

    def close(self) -> None:
        """Writes what is left."""
        self.curve.flush()
        self.trackers.close()


class Pace:
    """Samples/s and the share of the time spent waiting for data, since the last mark."""

    def __init__(self, first_step: int):
        self.step, self.marked, self.waited = first_step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    def mark(self, done: int, batch_size: int) -> dict[str, float]:
        """The pace of the steps since the last mark, up to `done`."""
        elapsed = time.monotonic() - self.marked
        pace = {
            "samples_per_second": (done - self.step) * batch_size / elapsed,
            "data_wait_share": self.waited / elapsed,
        }
        self.restart(done)
        return pace

    def restart(self, done: int) -> None:
        """Counts from here: what came since the last mark was not training."""
        self.step, self.marked, self.waited = done, time.monotonic(), 0.0


def memory(device: torch.device) -> dict[str, int]:
    """This process's resident memory and, on a GPU, the memory of its tensors there, at their highest, in bytes."""
    found = {"memory_bytes": peak_bytes()}
    return found | {"gpu_memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else found
