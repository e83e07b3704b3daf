"""Stop requests: SIGINT (Ctrl-C) and SIGTERM raise `Stopped` in the main thread, wherever the program is.

A terminal and many batch systems send the signal to all processes of a command. Processes that this one still uses then
end, and their end causes further errors. So the first request is remembered, and every later error counts as its
consequence (`received`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from orchestrator.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# as in a shell, the exit code after a signal is this plus the signal's number
SIGNALLED = 128
# some batch systems send one request twice, to the process and to its group; the second must not disturb the clean-up
SAME_REQUEST_SECONDS = 1.0


@dataclass
class _Request:
    number: signal.Signals | None = None
    at: float = 0.0
    is_ours: bool = False


_request = _Request()
_forwards = True


def note(number: int) -> bool:
    """Remember a request; return False if it only repeats the one before."""
    now = time.monotonic()
    repeats = _request.number is not None and now - _request.at < SAME_REQUEST_SECONDS
    if _request.number is None:
        _request.number, _request.at = signal.Signals(number), now
    return not repeats


def received() -> signal.Signals | None:
    """Return the signal that has asked this command to stop; None if none has, or only the command itself."""
    return None if _request.is_ours else _request.number


def name() -> str:
    """Return the name of the signal that asked this command to stop."""
    return (_request.number or signal.SIGTERM).name


def stop_ourselves() -> None:
    """Stop this command as a SIGTERM does; the errors that follow keep their own messages."""
    _request.is_ours = _request.number is None
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def handled(*, before_stop: Callable[[], None] | None = None, until_exit: bool = False) -> Iterator[None]:
    """Raise `Stopped` for each signal during the block; `before_stop` is called first. A later signal raises again.

    Afterwards the handlers are those of before. `until_exit`: the process ends after the block, so a signal then ends
    it at once and in silence."""
    global _request
    _request = _Request()

    def stop(number: int, frame: FrameType | None) -> None:
        is_first = _request.number is None
        if not note(number):
            return
        if is_first and before_stop is not None:
            before_stop()
        raise Stopped(f"stopped by {name()}; run the same command again to resume")

    before = _replaced(stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if until_exit else handler)


def end_at_once() -> dict[signal.Signals, Any]:
    """End the process with one line at the next signal, while there is nothing to clean up; return the old handlers.

    No exception is raised: Python prints and ignores one that appears in a callback of its import system."""
    return _replaced(_end)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Do what `end_at_once` does, during the block."""
    before = end_at_once()
    try:
        yield
    finally:
        _restore(before)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"orchestrator: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(SIGNALLED + number)


@contextmanager
def forwarded(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` for the first signal during the block instead of the handler; the next one reaches the handler."""
    if not _forwards:
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def forward(number: int, frame: FrameType | None) -> None:
        note(number)
        _restore(before)
        stop()

    before |= _replaced(forward)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def not_forwarded() -> Iterator[None]:
    """Let signals reach the handler at once during the block: nothing in it is worth a checkpoint."""
    global _forwards
    _forwards = False
    try:
        yield
    finally:
        _forwards = True


def _replaced(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    # a shell ignores SIGINT for a command in the background; this must not change that
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
