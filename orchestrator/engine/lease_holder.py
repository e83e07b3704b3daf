"""Who holds a lease (`lease`): a process, told apart from any other on this machine or another."""

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

# states of a process in /proc that has ended, though its parent has not asked about it yet
ENDED = ("Z", "X")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who computes an artifact.

    `machine` tells apart hosts, and containers on them, that share a name; `process_start` a process from a later one
    with its pid. Both are null on systems without /proc, where only the expiry counts."""

    owner: str
    host: str
    machine: str | None
    pid: int
    process_start: str | None
    expiry_seconds: float

    @classmethod
    def here(cls, expiry_seconds: float) -> Holder:
        """This process, for one artifact."""
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
        """Who wrote a lease; `None` for one that is not whole."""
        with suppress(ValueError, TypeError, AttributeError):
            return cls(**{key: value for key, value in json.loads(lease).items() if key in cls.__dataclass_fields__})
        return None

    def lease(self) -> bytes:
        """What the file holds; no two are the same."""
        return json.dumps({**asdict(self), "renewed": datetime.now(UTC).isoformat()}, indent=1).encode()

    def is_gone(self) -> bool:
        """Whether this is a process of this machine that has ended."""
        if self.machine is None or self.machine != _machine():
            return False
        seen = _stat(self.pid)
        if seen is None:
            # /proc may hide the processes of other users (hidepid), which is no word on whether they run
            return not _is_there(self.pid)
        return seen.state in ENDED or self.process_start not in (None, seen.start)


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


class _Stat(NamedTuple):
    """Of a process, as /proc has it: its state, and when it began, in ticks since boot."""

    state: str
    start: str


def _stat(pid: int) -> _Stat | None:
    # the 3rd and the 22nd field; the 2nd is the program's name in parentheses, which may hold anything
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return _Stat(fields[0], fields[19])


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        # nothing may be sent to one of another user, which is there all the same
        return not isinstance(error, ProcessLookupError)
    return True
