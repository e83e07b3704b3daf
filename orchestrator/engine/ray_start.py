"""What surrounds the start of Ray: signal handlers, process groups, and what Ray prints."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray._private import services, worker

from orchestrator.engine import stop_signals

logger = logging.getLogger(__name__)

# a run starts more processes than a laptop has cores
EXPECTED = "worker processes have been started on node"


@contextmanager
def kept_sigterm_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM, also for a signal during the start."""
    # Ray replaces the handler of the command line, which tells the user how to resume
    before, is_main = signal.getsignal(signal.SIGTERM), threading.current_thread() is threading.main_thread()
    try:
        yield
    except SystemExit as ended:
        # Ray's handler has run
        if ended.code == signal.SIGTERM and callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        if callable(before) and is_main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def own_process_groups() -> Iterator[None]:
    """Start the processes of a new cluster in process groups of their own.

    Ctrl-C and batch systems send a signal to all processes of the command's group. The cluster must outlive it until
    this process has ended its work. Ray's processes end with this one in any case."""
    # Ray has no setting for it; without this name, in another version of Ray, the processes stay in the group
    popen = getattr(services, "ConsolePopen", None)
    if popen is None:
        yield
        return
    services.ConsolePopen = partial(popen, process_group=0)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        services.ConsolePopen = popen  # type: ignore[misc]


@contextmanager
def silenced_stderr() -> Iterator[None]:
    """Write nothing to stderr."""
    # Ray's C++ core writes a banner to the file descriptor itself; errors still arrive as exceptions
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def log_messages() -> None:
    """Write messages of the cluster to the log, such as of tasks that it retries; Ray prints them to stdout."""
    # Ray has no setting for it; in a version of Ray without this name they are printed
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = _log_message


def _log_message(data: dict[str, Any], ignore_prefix: bool) -> None:
    for line in data["lines"]:
        # a cluster that stops with the command prints many messages
        if EXPECTED not in line and stop_signals.received() is None:
            logger.warning("Ray: %s", line)
