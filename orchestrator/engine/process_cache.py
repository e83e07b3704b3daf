"""Caches of a process. Inputs that all tasks of an execution share are unpickled once per process, not once per task:
a pool of 231,350 shards takes three seconds to unpickle, too much for a task over a few hundred pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

# a process works for at most two executions at a time, training and the evaluation between its steps, each with at most
# two inputs
MAX_ENTRIES = 4
_entries: dict[bytes, Any] = {}


def fetched(reference: ray.ObjectRef) -> Any:
    """Return the object behind a reference. All tasks of this process share it, so it must not be changed."""
    name = reference.binary()
    if name not in _entries:
        while len(_entries) >= MAX_ENTRIES:
            # the oldest entry: a dictionary keeps the order of insertion
            del _entries[next(iter(_entries))]
        _entries[name] = ray.get(reference)
    return _entries[name]


_clear_functions: list[Callable[[], None]] = []


def register(clear: Callable[[], None]) -> None:
    """Register another cache of this process, by the function that empties it."""
    _clear_functions.append(clear)


def clear_all() -> None:
    """Empty every registered cache. The metering of costs uses it, so that each measured call reads its data itself."""
    for clear in _clear_functions:
        clear()
