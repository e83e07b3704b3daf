"""The time limit of a probe's stage."""

from __future__ import annotations

import math
import signal
import threading
import time

import pytest

from orchestrator.plan.time_limit import TimeUp, time_limit


def test_the_block_ends_when_its_time_is_up() -> None:
    before, started = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(TimeUp), time_limit(0.05):
        time.sleep(10)
    assert time.monotonic() - started < 5
    assert signal.getsignal(signal.SIGALRM) is before

    # what the error became on its way through a library
    def in_a_library() -> None:
        try:
            time.sleep(10)
        except TimeUp as error:
            raise SystemError from error

    with pytest.raises(TimeUp) as caught, time_limit(0.05):
        in_a_library()
    assert isinstance(caught.value.__cause__, SystemError)
    with time_limit(math.inf), time_limit(60):
        pass
    with pytest.raises(ZeroDivisionError), time_limit(60):
        raise ZeroDivisionError


def test_a_timer_that_runs_already_goes_on() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with time_limit(50):
            time.sleep(0.05)
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] < 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_other_threads_have_no_limit() -> None:
    ended = threading.Event()

    def wait() -> None:
        with time_limit(0.01):
            time.sleep(0.05)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert ended.is_set()
