"""Commands as processes that a test disturbs: started, watched, killed with all that they started."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.commands import environment

PATIENCE = 240.0


@contextmanager
def started(command: str, folder: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own; nothing of it survives the block. What it says goes to log.txt."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=folder,
            env=environment(**(env or {})),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver and to every process that it started, Ray's own sessions included."""
    family = descendants(process.pid)
    for one in [process, *family]:
        try:
            one.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below one; none when it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def called(name: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those with a name in their command line: Ray's processes name themselves."""
    found = []
    for process in processes:
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(seen: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """What `seen` gives once that is true; the command must still be going on then."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = seen()
        if found:
            assert process.poll() is None, "the command ended before it could be disturbed"
            return found
        assert process.poll() is None, "the command ended early"
        time.sleep(0.02)
    raise AssertionError("nothing to be seen")


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A folder that is a file system of its own, of a size such as "64m"; the test is skipped where none can be had."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
