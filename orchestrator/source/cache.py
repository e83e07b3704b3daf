"""Keep copies of remote shards on each node's disk, made when training first reads a shard's images.

If two processes need the same shard at once, one copies it and the other reads over the network. When the disk is
nearly full, all reads go over the network. Nothing is deleted: the folder belongs to the user, and a changed shard gets
a new file name."""

from __future__ import annotations

import errno
import glob
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from orchestrator.source.schema import Part, PartCatalog, Reads, Shard, Source
from orchestrator.storage import files

logger = logging.getLogger(__name__)

# share of the disk that stays free for other programs
LEFT_FREE = 0.05
# errors of a folder that cannot be written
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
MISSING: Any = object()
# an unfinished copy without writes for this long was left behind by a process that ended
STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class Cached:
    """A source that reads images from local copies of its shards in `folder`."""

    source: Source
    folder: str

    @property
    def has_images(self) -> bool:
        """Same as the source."""
        return self.source.has_images

    def parts(self) -> list[Part]:
        """Return the source's parts."""
        return self.source.parts()

    def catalog(self, part: Part) -> PartCatalog:
        """Read the catalog without copying the shard, because a catalog reads each shard only once."""
        return self.source.catalog(part)

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """Yield images from the local copy of the part's shard, made now if needed; else from the source."""
        copy = local_copy(part.shard, self.folder)
        if copy is None:
            yield from self.source.images(part, rows)
            return
        found = self.source.images(replace(part, shard=replace(part.shard, uri=copy)), rows)
        try:
            first = next(found, MISSING)
        except FileNotFoundError:
            # the user may clear the folder at any time
            yield from self.source.images(part, rows)
            return
        if first is not MISSING:
            yield first
            yield from found

    def fields(self, part: Part, keys: Sequence[str], names: Sequence[str]) -> pa.Table:
        """Read fields without copying the shard."""
        return self.source.fields(part, keys, names)

    def reads(self, part: Part) -> Reads:
        """Return the source's reads, regardless of copies."""
        return self.source.reads(part)

    def identity(self) -> dict[str, Any]:
        """Return the source's identity; local copies do not change it."""
        return self.source.identity()


def local_copy(shard: Shard, folder: str) -> str | None:
    """Return the path of a shard's copy, made now if needed.

    None if the shard is local, another process is copying it, or the disk has no room.
    Errors: `StoreError` if the shard cannot be read or has changed since it was listed."""
    if files.is_local(shard.uri):
        return None
    digest = hashlib.sha256(f"{shard.uri}\t{shard.num_bytes}\t{shard.version}".encode()).hexdigest()[:24]
    path = os.path.join(folder, f"{digest}-{shard.name}")
    if _is_whole(path, shard):
        return path
    try:
        os.makedirs(folder, exist_ok=True)
        return path if _has_room(shard, folder) and _copied(shard, path) else None
    except OSError as error:
        # a folder that cannot be written means no copy; other errors come from reading the shard
        if error.errno in NO_PLACE:
            logger.warning("no local copy of %s: %s", shard.uri, error)
            return None
        raise


def _is_whole(path: str, shard: Shard) -> bool:
    # after a power loss a file may be shorter than its name promises; num_bytes is 0 if the listing has no size
    with suppress(OSError):
        return os.path.getsize(path) == shard.num_bytes or not shard.num_bytes
    return False


def _has_room(shard: Shard, folder: str) -> bool:
    disk = shutil.disk_usage(folder)
    return disk.free - shard.num_bytes > LEFT_FREE * disk.total


def _copied(shard: Shard, path: str) -> bool:
    marker, copy = f"{path}.part", f"{path}.{uuid.uuid4().hex[:8]}{files.TEMPORARY}"
    _clear_stale(path, marker)
    try:
        with open(marker, "xb"):
            pass
    except FileExistsError:
        return False
    try:
        files.get_file(shard.uri, copy)
        if not _is_whole(copy, shard):
            raise files.StoreError(
                f"{shard.uri}: got {os.path.getsize(copy):,} bytes, expected {shard.num_bytes:,} as listed; the shard "
                "changed during the run; shards must not change"
            )
        files.rename_synced(copy, path)
        logger.info("copied %s to %s", shard.uri, path)
    finally:
        for left in (copy, marker):
            with suppress(FileNotFoundError):
                os.remove(left)
    return True


def _clear_stale(path: str, marker: str) -> None:
    # `marker` is removed last: without it no process would look for the temporary files
    left = [*glob.glob(f"{glob.escape(path)}.*{files.TEMPORARY}"), marker]
    with suppress(FileNotFoundError):
        # a copy in progress has a recent modification time, however long it takes
        if time.time() - max(map(os.path.getmtime, left)) > STALE_SECONDS:
            for file in left:
                os.remove(file)
