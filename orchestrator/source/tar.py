"""List the members of a tar from its headers: name, offset and size of each member, without the payloads.

In an uncompressed tar the reader seeks from header to header; a compressed tar must be read in full. Key and extension
follow the WebDataset convention: the key is the path up to the first dot of the base name. Format: POSIX ustar/pax;
`tarfile` resolves pax and GNU long names."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

from orchestrator.storage.files import open_file
from orchestrator.storage.retry import CutOff

BLOCK = 512
# in bytes: for a longer member, the file size is checked before memory is allocated
LONG = 1 << 20
# in bytes: assumed upper bound of the uncompressed size of a compressed tar
MAX_COMPRESSED = 1 << 50
GZIP_MAGIC = b"\x1f\x8b"
_NAME = re.compile(r"^((?:.*/|)[^./][^.]*)\.([^/]+)$")
# CutOff: a stream that ends early on every retry is treated like a truncated file
_CUT = (gzip.BadGzipFile, zlib.error, EOFError, CutOff)
_DAMAGE = (tarfile.TarError, *_CUT)


class DamagedTar(Exception):
    """The tar is truncated or corrupt. `member` is the affected member; None if the damage is between members."""

    def __init__(self, member: Member | None) -> None:
        super().__init__(member)
        self.member = member


class NotATar(Exception):
    """The file does not start with a tar header."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar. `offset` is the start of its payload in the (uncompressed) stream; `size` is in bytes."""

    key: str
    extension: str
    offset: int
    size: int


@contextmanager
def open_tar(uri: str) -> Iterator[tuple[IO[bytes], bool]]:
    """Open a tar as a stream of uncompressed bytes; the flag says whether stream offsets equal file offsets.

    Errors: `DamagedTar`; `OSError` if the read fails."""
    with open_file(uri) as file:
        try:
            is_compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        except CutOff as error:
            raise DamagedTar(None) from error
        file.seek(0)
        if is_compressed:
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield cast(IO[bytes], stream), False
        else:
            yield file, True


def members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the regular files of a tar in order, except names that cannot be samples (no dot, or hidden).

    Before it asks for the next member, the caller may call `read_member` on the current one, but not on earlier ones.
    Errors: `NotATar`; `DamagedTar`, after the last member with a complete header; `OSError` if the read fails."""
    length = _length(file)
    file.seek(0)
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="replace")
    except _DAMAGE as error:
        raise NotATar(str(error)) from error
    member: Member | None = None
    while True:
        # a damaged header may state any size, and `tarfile` would seek beyond the end of the file
        if tar.offset > length:
            raise DamagedTar(member)
        try:
            info = tar.next()
        except _DAMAGE as error:
            raise DamagedTar(member) from error
        if info is None:
            break
        if info.size < 0:
            raise DamagedTar(member)
        tar.members.clear()  # type: ignore[attr-defined]  # TarFile would keep every header in memory
        member = _member(info)
        if member is not None:
            yield member
    _check_end(file, tar.offset)


def read_member(file: IO[bytes], member: Member, limit: int | None = None) -> bytes:
    """Read the payload of the current member, or its first `limit` bytes. Errors: `DamagedTar`."""
    length = member.size if limit is None else min(limit, member.size)
    try:
        # a damaged header may ask for more memory than there is
        if length > LONG and member.offset + member.size > _length(file):
            raise DamagedTar(member)
        file.seek(member.offset)
        data = file.read(length)
    except _CUT as error:
        raise DamagedTar(member) from error
    if len(data) < length:
        raise DamagedTar(member)
    return data


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension; None if it cannot belong to a sample."""
    found = _NAME.match(name.removeprefix("./"))
    return (found[1], found[2].lower()) if found else None


def _length(file: IO[bytes]) -> int:
    # the length of a compressed stream is known only at its end
    return file.seek(0, os.SEEK_END) if not isinstance(file, gzip.GzipFile) else MAX_COMPRESSED


def _member(info: tarfile.TarInfo) -> Member | None:
    name = split_name(info.name) if info.isreg() else None
    return None if name is None else Member(*name, info.offset_data, info.size)


def _check_end(file: IO[bytes], offset: int) -> None:
    # `tarfile` stops at an invalid header and at the end of the file; only a complete tar ends with a block of zeros
    try:
        file.seek(offset)
        block = file.read(BLOCK)
    except _DAMAGE as error:
        raise DamagedTar(None) from error
    if block != bytes(BLOCK):
        raise DamagedTar(None)
