"""Rank 0's log of a phase's numbers, and the pace of its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from orchestrator.engine.metering import peak_bytes
from orchestrator.training.job import Job
from orchestrator.training.tracking.curve import Curve
from orchestrator.training.tracking.trackers import PhaseTrackers


class PhaseLog:
    """Sends the numbers of each logged step to the curve, the trackers and the driver."""

    def __init__(self, job: Job, first_step: int):
        self.curve = Curve(job.artifact.uri, first_step=first_step)
        self.trackers = PhaseTrackers(
            job.config.tracking,
            uri=job.artifact.uri,
            name=job.name,
            first_step=first_step,
            settings=job.config.model_dump(mode="json"),
            warn=lambda line: job.signals.warn.remote(line),
        )
        self.signals = job.signals

    def add(self, record: dict[str, float]) -> None:
        """Log the numbers of a step."""
        self.curve.log(record)
        self.trackers.log(record)
        self.signals.report.remote(record)

    def close(self) -> None:
        """Write the curve and end the trackers' runs."""
        self.curve.flush()
        self.trackers.close()


class Pace:
    """Samples per second and the share of the time spent waiting for data, since the last mark."""

    def __init__(self, first_step: int):
        self.step, self.marked, self.waited = first_step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    def mark(self, done: int, batch_size: int) -> dict[str, float]:
        """Return the pace of the steps since the last mark, up to `done` steps, and set a new mark."""
        elapsed = time.monotonic() - self.marked
        pace = {
            "samples_per_second": (done - self.step) * batch_size / elapsed,
            "data_wait_share": self.waited / elapsed,
        }
        self.restart(done)
        return pace

    def restart(self, done: int) -> None:
        """Set a new mark: the time since the last one, such as an evaluation, was not training."""
        self.step, self.marked, self.waited = done, time.monotonic(), 0.0


def memory(device: torch.device) -> dict[str, int]:
    """Return the peak resident memory of this process and, on a GPU, the peak of its tensors there, in bytes."""
    found = {"memory_bytes": peak_bytes()}
    return found | {"gpu_memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else found
