"""The holder of a lease: a process, with what identifies it on this machine and among hosts."""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

# states in /proc of a process that has ended and that its parent has not waited for
ENDED = ("Z", "X")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that computes an artifact.

    `machine` distinguishes hosts, and containers on them, that share a name. `process_start` distinguishes a process
    from a later one with the same pid. Both are null on systems without /proc, where only the expiry time counts."""

    owner: str
    host: str
    machine: str | None
    pid: int
    process_start: str | None
    expiry_seconds: float

    @classmethod
    def here(cls, expiry_seconds: float) -> Holder:
        """Return this process as the holder of one lease."""
        return cls(
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_start=own.start if (own := _stat(os.getpid())) else None,
            expiry_seconds=expiry_seconds,
        )

    @classmethod
    def of(cls, lease: bytes) -> Holder | None:
        """Return the holder in a lease file; `None` if the file is incomplete."""
        with suppress(ValueError, TypeError, AttributeError):
            return cls(**{key: value for key, value in json.loads(lease).items() if key in cls.__dataclass_fields__})
        return None

    def lease(self) -> bytes:
        """Return the content of the lease file. No two calls return the same bytes."""
        return json.dumps({**asdict(self), "renewed": datetime.now(UTC).isoformat()}, indent=1).encode()

    def is_gone(self) -> bool:
        """Return whether the holder is a process of this machine that has ended."""
        if self.machine is None or self.machine != _machine():
            return False
        seen = _stat(self.pid)
        if seen is None:
            # /proc may hide the processes of other users (hidepid): without an entry the process may still run
            return not _is_there(self.pid)
        return seen.state in ENDED or self.process_start not in (None, seen.start)


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


class _Stat(NamedTuple):
    """A process in /proc: its state and its start time in ticks since boot."""

    state: str
    start: str


def _stat(pid: int) -> _Stat | None:
    # fields 3 and 22; field 2 is the program's name in parentheses and may hold any character
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return _Stat(fields[0], fields[19])


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        # PermissionError: the process exists and belongs to another user
        return not isinstance(error, ProcessLookupError)
    return True
