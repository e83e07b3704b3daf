"""The members of a tar without its payloads: a walk over the headers that gives name, offset and size of each member.

On an uncompressed tar the walk seeks from header to header; a compressed one has to be read through. Key and extension
follow WebDataset's convention: the key is the path up to the first dot of the base name. Reference: POSIX ustar/pax;
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
# in bytes: what is longer is read only once the file is known to be so long
LONG = 1 << 20
# in bytes: what a compressed tar is taken to hold at most
MAX_COMPRESSED = 1 << 50
GZIP_MAGIC = b"\x1f\x8b"
_NAME = re.compile(r"^((?:.*/|)[^./][^.]*)\.([^/]+)$")
# a stream that ends early time and again is as good as a file that does
_CUT = (gzip.BadGzipFile, zlib.error, EOFError, CutOff)
_DAMAGE = (tarfile.TarError, *_CUT)


class DamagedTar(Exception):
    """The tar ends before its end. `member`: the one that was cut, if the cut is not between members."""

    def __init__(self, member: Member | None) -> None:
        super().__init__(member)
        self.member = member


class NotATar(Exception):
    """The file does not begin as a tar does."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar; `offset` is where its payload begins in the (uncompressed) stream, `size` its bytes."""

    key: str
    extension: str
    offset: int
    size: int


@contextmanager
def open_tar(uri: str) -> Iterator[tuple[IO[bytes], bool]]:
    """The tar as a stream of uncompressed bytes, and whether offsets into it are offsets into the file.

    Errors: `DamagedTar`; `OSError` from reading."""
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
    """The regular files of a tar in order; names that are no sample's (no dot, hidden) are passed over.

    Between two members the caller may `read_member` the one just given, never an earlier one.
    Errors: `NotATar`, `DamagedTar` (raised after the last member whose header is whole); `OSError` from reading."""
    length = _length(file)
    file.seek(0)
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="replace")
    except _DAMAGE as error:
        raise NotATar(str(error)) from error
    member: Member | None = None
    while True:
        # a header may say any size, and `tarfile` seeks to its end
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
        tar.members.clear()  # type: ignore[attr-defined]  # a tar keeps every header it has seen otherwise
        member = _member(info)
        if member is not None:
            yield member
    _check_end(file, tar.offset)


def read_member(file: IO[bytes], member: Member, limit: int | None = None) -> bytes:
    """The payload of the member just given by `members`, or its first `limit` bytes. Errors: `DamagedTar`."""
    length = member.size if limit is None else min(limit, member.size)
    try:
        # so much memory would be asked for
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
    """Key and extension of a member of that name; none where it is no sample's."""
    found = _NAME.match(name.removeprefix("./"))
    return (found[1], found[2].lower()) if found else None


def _length(file: IO[bytes]) -> int:
    # that of a compressed stream shows at its end only
    return file.seek(0, os.SEEK_END) if not isinstance(file, gzip.GzipFile) else MAX_COMPRESSED


def _member(info: tarfile.TarInfo) -> Member | None:
    name = split_name(info.name) if info.isreg() else None
    return None if name is None else Member(*name, info.offset_data, info.size)


def _check_end(file: IO[bytes], offset: int) -> None:
    # `tarfile` takes any odd header, and the bare end of the file, for the end of the archive
    try:
        file.seek(offset)
        block = file.read(BLOCK)
    except _DAMAGE as error:
        raise DamagedTar(None) from error
    if block != bytes(BLOCK):
        raise DamagedTar(None)
