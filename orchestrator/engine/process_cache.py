"""Caches of a worker process: the common argument of all tasks of an execution, and a way to empty every cache.

The argument is unpickled once per process, not once per task: a pool of 231,350 shards takes three seconds, too much
for a task over a few hundred pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

# a process serves several executions in turn, and two at once: training and the evaluation during it
MOST_KEPT = 2
_kept: dict[bytes, Any] = {}


def fetched(reference: ray.ObjectRef) -> Any:
    """Return the object of a reference. All tasks of this process share it, so it must not be changed."""
    name = reference.binary()
    if name not in _kept:
        while len(_kept) >= MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[name] = ray.get(reference)
    return _kept[name]


_clearing: list[Callable[[], None]] = []


def register(clear: Callable[[], None]) -> None:
    """Add a cache of this process; `clear` empties it."""
    _clearing.append(clear)


def clear_all() -> None:
    """Empty every registered cache, so that the next call reads what it needs again."""
    for clear in _clearing:
        clear()
