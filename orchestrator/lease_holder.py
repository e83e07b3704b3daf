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
            process_start=_process_start(os.getpid()),
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
        return (
            self.machine is not None and self.machine == _machine() and self.process_start != _process_start(self.pid)
        )


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    # the 22nd field, in ticks since boot; the 2nd is the program's name in parentheses, which may hold anything
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in ENDED else fields[19]
