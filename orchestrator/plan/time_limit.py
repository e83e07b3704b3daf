"""A time limit for a block of code in the main thread."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeUp(BaseException):
    """The time of a block is up. It is no `Exception`: no code inside the block may swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` in the block after some seconds. Without effect outside of the main thread, and for infinity."""
    if math.isinf(seconds) or threading.current_thread() is not threading.main_thread():
        yield
        return
    is_up = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_up
        is_up = True
        raise TimeUp

    before, started = signal.signal(signal.SIGALRM, end), time.monotonic()
    # another timer may be running, such as that of a test
    left, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    except BaseException as error:
        # inside of Ray's calls, the exception of a signal handler becomes the cause of another one
        if is_up and not isinstance(error, TimeUp):
            raise TimeUp from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(0.001, left - time.monotonic() + started) if left else 0)
        signal.signal(signal.SIGALRM, before)
