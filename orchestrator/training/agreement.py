"""Agreement of all ranks: they exchange information at the same step, and all act on it in the same way.

Without it, a rank that stops or fails alone leaves the others waiting in a collective operation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from orchestrator.errors import UserError


class AgreedError(UserError):
    """An error that all ranks raise at the same step, so that none waits for another."""


def gather(value: Any, num_ranks: int) -> list[Any]:
    """Return every rank's value, by rank; every rank calls it at the same point."""
    if num_ranks == 1:
        return [value]
    gathered: list[Any] = [None] * num_ranks
    dist.all_gather_object(gathered, value)
    return gathered


def from_first(value: Any, num_ranks: int) -> Any:
    """Return rank 0's value on every rank; the values of other ranks are ignored."""
    values = [value]
    if num_ranks > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all(num_ranks: int) -> None:
    """Wait until every rank has called it."""
    if num_ranks > 1:
        dist.barrier()


@dataclass(frozen=True)
class RankRequest:
    """What one rank asks all ranks to do: stop with a checkpoint, write a checkpoint, or fail with an error."""

    stop: bool = False
    checkpoint: bool = False
    error: str | None = None

    @classmethod
    def of_all(cls, requests: Sequence[RankRequest]) -> RankRequest:
        """Combine the requests of all ranks: one rank's request is enough.

        Errors: `AgreedError` with the first error."""
        error = next((request.error for request in requests if request.error), None)
        if error:
            raise AgreedError(error)
        return cls(
            stop=any(request.stop for request in requests), checkpoint=any(request.checkpoint for request in requests)
        )


class CheckpointTimer:
    """Tells when the next checkpoint is due by time; without an interval it never is."""

    def __init__(self, minutes: float | None):
        self.seconds, self.since = minutes and 60 * minutes, time.monotonic()

    def is_due(self) -> bool:
        """Whether the interval since the last checkpoint is over."""
        return self.seconds is not None and time.monotonic() - self.since >= self.seconds

    def restart(self) -> None:
        """Begin a new interval, after a checkpoint."""
        self.since = time.monotonic()
