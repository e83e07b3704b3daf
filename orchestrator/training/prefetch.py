"""Items made ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeAlias, TypeVar

Item = TypeVar("Item")
_Ready: TypeAlias = "queue.Queue[tuple[Item | None, BaseException | None]]"


def prefetch(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Return an iterator of the same items; a thread, which starts now, makes up to `depth` of them ahead.

    The iterator raises the errors of the thread."""
    ready: _Ready = queue.Queue(depth)
    threading.Thread(target=_put_all, args=(items, ready), daemon=True, name="prefetch").start()
    return _taken(ready)


def _taken(ready: _Ready) -> Iterator[Item]:
    while True:
        item, error = ready.get()
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        yield item  # type: ignore[misc]


def _put_all(items: Iterator[Item], ready: _Ready) -> None:
    try:
        for item in items:
            ready.put((item, None))
    except BaseException as error:  # noqa: BLE001 `prefetch` raises it again
        ready.put((None, error))
    else:
        ready.put((None, StopIteration()))
