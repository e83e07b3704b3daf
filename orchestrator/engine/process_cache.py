"""What all tasks of an execution take, unpickled once a process rather than once a task: a pool of 231,350 shards takes
three seconds, which a task over a few hundred pairs should not pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

# a process serves one execution after another, and two at once: training, and its evaluation on the way
MOST_KEPT = 2
_kept: dict[bytes, Any] = {}


def fetched(reference: ray.ObjectRef) -> Any:
    """What the reference stands for; the same object for every task of this process, so nobody may change it."""
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
