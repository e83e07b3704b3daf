"""SIGINT and SIGTERM: raised once, remembered, forwarded; a stop of the command's own is no signal from outside."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from orchestrator.engine import stop_signals
from orchestrator.errors import Stopped


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    # a shell ignores SIGINT for commands in the background
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    stop_signals._request = stop_signals._Request()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", stop_signals.SIGNALS)
def test_a_signal_stops_the_block_and_its_repetition_does_not_disturb(number: signal.Signals) -> None:
    before, calls = signal.getsignal(number), list[str]()
    with stop_signals.handled(before_stop=lambda: calls.append("asked")):
        assert stop_signals.received() is None
        with pytest.raises(Stopped, match=f"stopped by {number.name}; run the same command again to resume"):
            send(number)
        # the same request, sent to the process group too
        send(signal.SIGTERM)
        assert stop_signals.received() == number
        stop_signals._request.at -= stop_signals.SAME_REQUEST_SECONDS
        with pytest.raises(Stopped, match=f"stopped by {number.name}"):
            send(signal.SIGTERM)
    assert calls == ["asked"]
    assert signal.getsignal(number) is before


def test_a_forwarded_signal_raises_only_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    with stop_signals.handled():
        with stop_signals.forwarded(lambda: asked.append("workers")):
            send(signal.SIGINT)
            send(signal.SIGINT)
            assert asked == ["workers"]
            assert (stop_signals.received(), stop_signals.name()) == (signal.SIGINT, "SIGINT")
            monkeypatch.setattr(stop_signals, "SAME_REQUEST_SECONDS", 0.0)
            with pytest.raises(Stopped):
                send(signal.SIGINT)
        assert asked == ["workers"]


def test_a_stop_of_our_own_is_no_signal_from_outside() -> None:
    with stop_signals.handled():
        with pytest.raises(Stopped):
            stop_signals.stop_ourselves()
        assert stop_signals.received() is None


def test_a_command_in_the_background_still_ignores_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_signals.handled():
        send(signal.SIGINT)
        assert stop_signals.received() is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
