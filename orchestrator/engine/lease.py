"""Two runs that need one artifact at the same time: one computes it, the others wait for it and reuse it.

Who computes holds `lease.json` in the artifact's folder and renews it. Who waits watches it change, by a clock of its
own, so that the clocks of two hosts need not agree: a lease that stood still for as long as it says is anybody's. That
of a process which is gone from this very machine is so at once.

A lease is created exclusively where the store can do that: O_EXCL on disks, a conditional put on S3, GCS and Azure.
Where it cannot, who wrote last has it. So for a moment, as when two waiters take away one abandoned lease, two runs may
compute the same. The parts of an artifact are written whole and are the same whoever writes them: that costs time and
corrupts nothing. Two trainings in one folder do remove each other's records; so who finds the lease to be another's
stops, at the next renewal."""

from __future__ import annotations

import os
import signal
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

FILE = "lease.json"
EXPIRY_SECONDS = 60.0
RENEWALS_PER_EXPIRY = 6
POLL_SECONDS = 1.0
# after a write that was not exclusive, for that of another to be seen
SETTLE_SECONDS = 1.0
NOT_IMPLEMENTED, PRECONDITION_FAILED = 501, 412


@contextmanager
def held(
    artifact: Artifact,
    *,
    name: str,
    told: Callable[[str], None],
    expiry_seconds: float = EXPIRY_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> Iterator[bool]:
    """Around what computes an artifact; `False` when it is there already, or another run completed it meanwhile.

    `name` is the stage's, for the lines that `told` passes on to the user. Errors: `StoreError` where nothing can be
    written; `UserError` when another run has taken the lease meanwhile."""
    uri, holder = artifact.path(FILE), Holder.here(expiry_seconds)
    if not _acquired(artifact, holder, name, told, poll_seconds):
        yield False
        return
    with _renewed(uri, holder, name, told):
        # it may have been completed between the look at it and the lease
        yield not _is_complete(artifact)


def _acquired(artifact: Artifact, holder: Holder, name: str, told: Callable[[str], None], poll_seconds: float) -> bool:
    # until the artifact is complete (False) or the lease is ours (True)
    uri, seen, changed = artifact.path(FILE), b"", time.monotonic()
    is_waiting = False
    while not _is_complete(artifact):
        if _created(uri, holder.lease()):
            return True
        lease = _read(uri)
        if lease is None:
            continue
        if lease != seen:
            seen, changed = lease, time.monotonic()
        other = Holder.of(lease)
        if other and other.owner == holder.owner:
            # written all the same: by a client that tried again what had passed, or not exclusively
            return True
        who = _who(other)
        expiry_seconds = other.expiry_seconds if other else holder.expiry_seconds
        if (other and other.is_gone()) or time.monotonic() - changed > expiry_seconds:
            told(f"{name}: the run that computed it ({who}) is gone; taking over")
            _take_away(uri, lease)
            continue
        # one that is just being written says it a poll later
        if other and not is_waiting:
            told(f"{name}: another run ({who}) computes it; waiting")
            is_waiting = True
        time.sleep(poll_seconds)
    return False


@contextmanager
def _renewed(uri: str, holder: Holder, name: str, told: Callable[[str], None]) -> Iterator[None]:
    ended, lost = threading.Event(), list[str]()
    stop = _stopper()

    def keep() -> None:
        was_told = False
        while not ended.wait(holder.expiry_seconds / RENEWALS_PER_EXPIRY):
            try:
                taken = _renewal(uri, holder)
            except Exception as error:  # noqa: BLE001 a store's own errors are of any kind, and what is built is worth more
                if not was_told:
                    told(f"{name}: cannot renew {uri}, so another run may compute the same: {error}")
                was_told = True
                continue
            if taken is not None:
                lost.append(f"{name}: another run ({_who(taken)}) took over, as this one was not heard of in time")
                told(f"{lost[0]}; stopping")
                stop()
                return

    renewing = threading.Thread(target=keep, daemon=True, name="lease")
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        # left behind it expires
        with suppress(Exception):
            if _is_ours(uri, holder):
                files.remove(uri)
                _forget_empty(uri)
        if lost:
            raise UserError(f"{lost[0]}; the same command waits for that one and uses what it makes")


def _renewal(uri: str, holder: Holder) -> Holder | None:
    # who has the lease in our place; one that was removed is nobody's, and one that is just being written is read later
    lease = _read(uri)
    if lease is None:
        _created(uri, holder.lease())
        return None
    found = Holder.of(lease)
    if found is None or found.owner != holder.owner:
        return found
    files.write(uri, holder.lease())
    return None


def _stopper() -> Callable[[], None]:
    # what stops a command of ours in its main thread, as a cluster does: training then ends with a checkpoint
    is_main = threading.current_thread() is threading.main_thread()

    def stop() -> None:
        handler = signal.getsignal(signal.SIGTERM)
        if is_main and getattr(handler, "__module__", "").startswith("orchestrator."):
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def _who(holder: Holder | None) -> str:
    return f"host {holder.host}, pid {holder.pid}" if holder else "unknown"


def _forget_empty(uri: str) -> None:
    # what was refused before anything was computed leaves no folder behind, but the store itself is the user's
    if files.is_local(uri):
        folder = Path(files.filesystem(uri)[1]).parent
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def _is_complete(artifact: Artifact) -> bool:
    # a listing that the file system has kept is older than what another run has just written
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
    # False also after a write that was not exclusive: whose it is then shows when it is read
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
    # None: the store cannot create exclusively, or there is no folder or bucket
    fs, path = files.filesystem(uri)
    try:
        # not `pipe_file`, which looks and then writes where a file system has nothing better of its own
        with fs.open(path, "xb") as file:
            file.write(lease)
        return True
    except FileExistsError:
        return False
    except (FileNotFoundError, ValueError, TypeError, NotImplementedError):
        return None
    except OSError as error:
        # anything else passes, or is told: to write then what another may just have created would make two holders
        if status_of(error) not in (NOT_IMPLEMENTED, PRECONDITION_FAILED):
            raise
        return None if status_of(error) == NOT_IMPLEMENTED else False
