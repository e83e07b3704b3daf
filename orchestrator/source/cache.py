"""Copies of remote shards on each node's own disk, made when training first asks for a shard's images.

Of two processes that ask at once one copies, the other reads over the network meanwhile; so does everybody once the
disk is nearly full. Nothing is ever thrown out: the folder is the user's, and a shard that changed has another name."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from orchestrator.source.schema import Part, PartCatalog, Reads, Shard, Source
from orchestrator.storage import files

# of the disk, for whoever else writes there
LEFT_FREE = 0.05
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
MISSING: Any = object()
# a copy that is begun and older than this was left by a process that is gone
STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class Cached:
    """A source whose images are read from copies in a folder of the node."""

    source: Source
    folder: str

    @property
    def has_images(self) -> bool:
        """As of the source."""
        return self.source.has_images

    def parts(self) -> list[Part]:
        """The source's."""
        return self.source.parts()

    def catalog(self, part: Part) -> PartCatalog:
        """The source's: a shard is read once for it."""
        return self.source.catalog(part)

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """The source's, from the copy of the part's shard where there is one, or can be."""
        copy = local_copy(part.shard, self.folder)
        if copy is None:
            yield from self.source.images(part, rows)
            return
        found = self.source.images(replace(part, shard=replace(part.shard, uri=copy)), rows)
        try:
            first = next(found, MISSING)
        except FileNotFoundError:
            # the folder is the user's to clear
            yield from self.source.images(part, rows)
            return
        if first is not MISSING:
            yield first
            yield from found

    def reads(self, part: Part) -> Reads:
        """The source's, as though there were no copies."""
        return self.source.reads(part)

    def identity(self) -> dict[str, Any]:
        """The source's: where bytes lie changes nothing."""
        return self.source.identity()


def local_copy(shard: Shard, folder: str) -> str | None:
    """The path of a shard's copy; None for one that is local anyway, that another process is copying, or that there is
    no room for. Errors: `StoreError` from reading it, or where it is no longer what was listed."""
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
        # without a place for it there is no copy; what reading raises is told
        if error.errno in NO_PLACE:
            return None
        raise


def _is_whole(path: str, shard: Shard) -> bool:
    # a disk that lost its power may keep a name without all of its bytes; some listings do not say how many they are
    with suppress(OSError):
        return os.path.getsize(path) == shard.num_bytes or not shard.num_bytes
    return False


def _has_room(shard: Shard, folder: str) -> bool:
    disk = shutil.disk_usage(folder)
    return disk.free - shard.num_bytes > LEFT_FREE * disk.total


def _copied(shard: Shard, path: str) -> bool:
    begun, copy = f"{path}.part", f"{path}.{uuid.uuid4().hex[:8]}{files.TEMPORARY}"
    _clear_stale(path, begun)
    try:
        with open(begun, "xb"):
            pass
    except FileExistsError:
        return False
    try:
        files.get_file(shard.uri, copy)
        if not _is_whole(copy, shard):
            raise files.StoreError(
                f"{shard.uri}: got {os.path.getsize(copy):,} bytes, {shard.num_bytes:,} when it was listed; the shard "
                "changed since it was read; expected shards that stay as they are"
            )
        files.settle(copy, path)
    finally:
        for left in (copy, begun):
            with suppress(FileNotFoundError):
                os.remove(left)
    return True


def _clear_stale(path: str, begun: str) -> None:
    # the mark last: without it nobody would look for the bytes
    left = [*glob.glob(f"{glob.escape(path)}.*{files.TEMPORARY}"), begun]
    with suppress(FileNotFoundError):
        # one that is under way is written to, however long it takes
        if time.time() - max(map(os.path.getmtime, left)) > STALE_SECONDS:
            for file in left:
                os.remove(file)
