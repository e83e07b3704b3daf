"""Leases: when two runs need one artifact at the same time, one computes it and the other waits and reuses it.

The run that computes holds `lease.json` in the artifact's folder and renews it. A waiting run watches the file change
and measures the time with its own clock, so the clocks of two hosts need not agree. A lease expires when it has not
changed for as long as it says. The lease of a process that ended on this machine expires at once.

A lease is created exclusively where the store supports it: O_EXCL on disks, a conditional put on S3, GCS and Azure.
Elsewhere the last writer holds it. Two runs may then compute the same artifact for a moment, for example when two
waiting runs take over one expired lease. That costs time and corrupts nothing, because parts are written whole and have
the same content. Two trainings in one folder do remove each other's records, so a run stops when another run holds its
lease. It notices at the next renewal, after at most a sixth of the expiry time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.lease_holder import Holder
from orchestrator.errors import UserError
from orchestrator.storage import files
from orchestrator.storage.retry import status_of, tried

logger = logging.getLogger(__name__)

FILE = "lease.json"
EXPIRY_SECONDS = 60.0
RENEWALS_PER_EXPIRY = 6
POLL_SECONDS = 1.0
# pause after a write that was not exclusive, until the write of another run is visible
SETTLE_SECONDS = 1.0
NOT_IMPLEMENTED, PRECONDITION_FAILED = 501, 412


@contextmanager
def held(
    artifact: Artifact,
    *,
    name: str,
    show: Callable[[str], None],
    on_lost: Callable[[], None] | None = None,
    expiry_seconds: float = EXPIRY_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> Iterator[bool]:
    """Hold the artifact's lease while the block computes it; wait first if another run holds the lease.

    Yields `False` when the artifact is complete and there is nothing to compute. `name` is the stage's name in the
    lines passed to `show`. `on_lost` is called once, in the renewing thread, when another run has taken the lease over:
    it asks the command to stop. Errors: `StoreError` if the store cannot be written; `UserError` at the end of the
    block if the lease was lost."""
    uri, holder = artifact.path(FILE), Holder.here(expiry_seconds)
    if not _acquire(artifact, holder, name, show, poll_seconds):
        yield False
        return
    with _Renewal(uri, holder, name, show, on_lost):
        # another run may have completed the artifact between the first check and the lease
        yield not _is_complete(artifact)


def _acquire(artifact: Artifact, holder: Holder, name: str, show: Callable[[str], None], poll_seconds: float) -> bool:
    """Wait until the artifact is complete (False) or the lease is ours (True)."""
    uri, seen, changed = artifact.path(FILE), b"", time.monotonic()
    is_waiting = False
    while not _is_complete(artifact):
        if _created(uri, holder.lease()):
            logger.debug("%s: lease %s acquired", name, uri)
            return True
        lease = _read(uri)
        if lease is None:
            continue
        if lease != seen:
            seen, changed = lease, time.monotonic()
        other = Holder.of(lease)
        if other and other.owner == holder.owner:
            # a failed write that succeeded after all, or a store without exclusive writes
            return True
        expiry_seconds = other.expiry_seconds if other else holder.expiry_seconds
        if (other and other.is_gone()) or time.monotonic() - changed > expiry_seconds:
            show(f"{name}: the run that computed it ({_describe(other)}) has ended; taking over its lease")
            _take_away(uri, lease)
            continue
        # `other` is None while the file is being written; the next poll reads it whole
        if other and not is_waiting:
            show(f"{name}: waiting for another run ({_describe(other)}) that computes it")
            is_waiting = True
        time.sleep(poll_seconds)
    return False


class _Renewal:
    """Renews a lease in a thread while a block runs, and removes it at the end."""

    def __init__(
        self,
        uri: str,
        holder: Holder,
        name: str,
        show: Callable[[str], None],
        on_lost: Callable[[], None] | None,
    ):
        self.uri, self.holder, self.name, self.show, self.on_lost = uri, holder, name, show, on_lost
        self.ended, self.lost_to = threading.Event(), ""
        self.thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()
        # a lease that cannot be removed expires
        with suppress(Exception):
            if _is_ours(self.uri, self.holder):
                files.remove(self.uri)
                _remove_empty_folders(self.uri)
        if self.lost_to:
            raise UserError(f"{self.lost_to}; run the same command again to wait for that run and reuse its result")

    def _keep(self) -> None:
        is_reported = False
        while not self.ended.wait(self.holder.expiry_seconds / RENEWALS_PER_EXPIRY):
            try:
                taken = _renew(self.uri, self.holder)
            except Exception as error:  # noqa: BLE001 stores raise errors of any class; the computation is worth more
                if not is_reported:
                    self.show(f"{self.name}: cannot renew {self.uri}, so another run may compute the same: {error}")
                is_reported = True
                continue
            if taken is not None:
                self.lost_to = (
                    f"{self.name}: another run ({_describe(taken)}) took over the lease, because this run did not "
                    "renew it in time"
                )
                self.show(f"{self.lost_to}; stopping")
                if self.on_lost is not None:
                    self.on_lost()
                return


def _renew(uri: str, holder: Holder) -> Holder | None:
    """Renew the lease; return the other holder if it is no longer ours.

    A lease that was removed is created again. A lease that is being written is checked at the next renewal."""
    lease = _read(uri)
    if lease is None:
        _created(uri, holder.lease())
        return None
    found = Holder.of(lease)
    if found is None or found.owner != holder.owner:
        return found
    files.write(uri, holder.lease())
    return None


def _describe(holder: Holder | None) -> str:
    return f"host {holder.host}, pid {holder.pid}" if holder else "unknown"


def _remove_empty_folders(uri: str) -> None:
    # a stage that was refused before it computed anything leaves no folder behind; the store itself stays
    if files.is_local(uri):
        folder = Path(files.filesystem(uri)[1]).parent
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def _is_complete(artifact: Artifact) -> bool:
    # a cached listing may be older than the manifest that another run has just written
    fs, path = files.filesystem(artifact.uri)
    fs.invalidate_cache(path)
    return artifact.is_complete()


def _is_ours(uri: str, holder: Holder) -> bool:
    lease = _read(uri)
    found = Holder.of(lease) if lease is not None else None
    return found is not None and found.owner == holder.owner


def _take_away(uri: str, lease: bytes) -> None:
    if _read(uri) == lease:
        with suppress(FileNotFoundError):
            files.remove(uri)


def _read(uri: str) -> bytes | None:
    try:
        return files.read(uri)
    except FileNotFoundError:
        return None


def _created(uri: str, lease: bytes) -> bool:
    # also False after a write that was not exclusive: reading the file then shows who holds the lease
    if files.is_local(uri):
        return _created_here(uri, lease)
    created = tried(lambda: _created_there(uri, lease), uri, doing="write")
    if created is None:
        if not files.exists(uri):
            files.write(uri, lease)
            time.sleep(SETTLE_SECONDS)
        return False
    return created


def _created_here(uri: str, lease: bytes) -> bool:
    path = files.filesystem(uri)[1]
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(lease)
        return True
    except FileExistsError as error:
        if error.filename == path:
            return False
        raise files.unwritable(uri, error) from error
    except OSError as error:
        raise files.unwritable(uri, error) from error


def _created_there(uri: str, lease: bytes) -> bool | None:
    # None: the store cannot create a file exclusively, or the folder or bucket does not exist
    fs, path = files.filesystem(uri)
    try:
        # `pipe_file` checks and then writes on file systems without exclusive creation, so it is no lock
        with fs.open(path, "xb") as file:
            file.write(lease)
        return True
    except FileExistsError:
        return False
    except (FileNotFoundError, ValueError, TypeError, NotImplementedError):
        return None
    except OSError as error:
        # every other error is raised: writing here what another run may have just created would make two holders
        if status_of(error) not in (NOT_IMPLEMENTED, PRECONDITION_FAILED):
            raise
        return None if status_of(error) == NOT_IMPLEMENTED else False
