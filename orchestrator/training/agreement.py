"""What all ranks must know before any of them acts: gathered at the same steps by all, and judged by all alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from orchestrator.errors import UserError


class AgreedError(UserError):
    """A mistake that all ranks see at the same step: each may end by itself, none waits for another."""


def gather(value: Any, num_ranks: int) -> list[Any]:
    """Every rank's value, by rank; every rank calls it at the same point."""
    if num_ranks == 1:
        return [value]
    gathered: list[Any] = [None] * num_ranks
    dist.all_gather_object(gathered, value)
    return gathered


def from_first(value: Any, num_ranks: int) -> Any:
    """Rank 0's value on every rank; the others' is ignored."""
    values = [value]
    if num_ranks > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all(num_ranks: int) -> None:
    """Until every rank has come here."""
    if num_ranks > 1:
        dist.barrier()


@dataclass(frozen=True)
class Wishes:
    """What a rank asks of all: to stop with a checkpoint, to take a checkpoint, or to give up with a mistake."""

    stop: bool = False
    checkpoint: bool = False
    mistake: str | None = None

    @classmethod
    def of_all(cls, wishes: Sequence[Wishes]) -> Wishes:
        """What is to be done: any rank's wish. Errors: `AgreedError` with the first mistake."""
        mistake = next((one.mistake for one in wishes if one.mistake), None)
        if mistake:
            raise AgreedError(mistake)
        return cls(stop=any(one.stop for one in wishes), checkpoint=any(one.checkpoint for one in wishes))


class Clock:
    """When the next checkpoint is due by time."""

    def __init__(self, minutes: float | None):
        self.seconds, self.since = minutes and 60 * minutes, time.monotonic()

    def is_due(self) -> bool:
        """Whether the interval is over."""
        return self.seconds is not None and time.monotonic() - self.since >= self.seconds

    def restart(self) -> None:
        """A checkpoint was taken."""
        self.since = time.monotonic()
