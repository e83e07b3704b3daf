"""List the members of a tar from its headers: name, offset and size of each member, without the payloads.

In an uncompressed tar the reader seeks from header to header; a compressed tar must be read in full. Key and extension
follow the WebDataset convention: the key is the path up to the first dot of the base name. Format: POSIX ustar/pax;
`tarfile` resolves pax and GNU long names. Several tars in one file (`cat a.tar b.tar`) are read one after the other,
and a link stands for the member that it names."""

from __future__ import annotations

import gzip
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
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
# in bytes: how much is read at once behind the end of a tar
TAIL = 64 << 10
_NAME = re.compile(r"^((?:.*/|)[^./][^./]*)\.([^/]+)$")
# the folder in which macOS packs attributes of files
_MACOS = "__MACOSX/"
# CutOff: a stream that ends early on every retry is treated like a truncated file
_CUT = (gzip.BadGzipFile, zlib.error, EOFError, CutOff)
_DAMAGE = (tarfile.TarError, *_CUT)
# a damaged pax header leaves `tarfile` with errors of its own parsing
_BAD_HEADER = (*_DAMAGE, ValueError, IndexError, KeyError, OverflowError)


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


# links to links that are followed, as Linux does
MAX_LINKS = 40
Report = Callable[[str, str, str], None]
"""Takes the kind of a problem, the member's name ("" for the tar as a whole), and what it is in words."""


def members(file: IO[bytes], report: Report | None = None) -> Iterator[Member]:
    """Yield the regular files of a tar in order, except names that cannot be samples (no dot, or hidden).

    A link is yielded under its own name with the payload of its target. `report` gets what is not read:
    `sparse_member`, `dangling_link`, `trailing_data`. Before it asks for the next member, the caller may call
    `read_member` on the current one, but not on earlier ones.
    Errors: `NotATar`; `DamagedTar`, after the last member with a complete header; `OSError` if the read fails."""
    report = report or _no_report
    payloads: dict[str, tuple[int, int]] | None = None
    for info, is_whole in _headers(file, report):
        name = split_name(info.name)
        if name is None:
            continue
        if info.isreg() and is_whole:
            yield Member(*name, info.offset_data, info.size)
        elif info.isreg():
            report("sparse_member", info.name, "a sparse file, not read; write the tar without --sparse")
        elif info.islnk() or info.issym():
            # most tars have no links, so the targets are collected at the first one
            payloads = _payloads(file) if payloads is None else payloads
            target = _target(info)
            if target in payloads:
                yield Member(*name, *payloads[target])
            else:
                report("dangling_link", info.name, f"a link to {info.linkname}, which is no file of the tar")


def read_member(file: IO[bytes], member: Member, limit: int | None = None, *, start: int = 0) -> bytes:
    """Read the payload of the current member from byte `start`, up to its byte `limit`. Errors: `DamagedTar`."""
    length = (member.size if limit is None else min(limit, member.size)) - start
    try:
        # a damaged header may ask for more memory than there is
        if length > LONG and member.offset + member.size > _length(file):
            raise DamagedTar(member)
        file.seek(member.offset + start)
        data = file.read(length)
    except _CUT as error:
        raise DamagedTar(member) from error
    if len(data) < length:
        raise DamagedTar(member)
    return data


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension; None if it cannot belong to a sample."""
    found = None if _MACOS in name else _NAME.match(name.removeprefix("./"))
    return (found[1], found[2].lower()) if found else None


def _length(file: IO[bytes]) -> int:
    # the length of a compressed stream is known only at its end
    return file.seek(0, os.SEEK_END) if not isinstance(file, gzip.GzipFile) else MAX_COMPRESSED


def _headers(file: IO[bytes], report: Report) -> Iterator[tuple[tarfile.TarInfo, bool]]:
    """Yield every header, and whether the tar has as many bytes of the file as its size says, in one piece."""
    length = _length(file)
    start: int | None = 0
    while start is not None:
        tar = _archive(file, start)
        if tar is None:
            report("trailing_data", "", f"the data from byte {start:,} on, after the tar's end, is no tar; not read")
            return
        last: tarfile.TarInfo | None = None
        while True:
            # a damaged header may state any size, and `tarfile` would seek beyond the end of the file
            if tar.offset > length:
                raise DamagedTar(_of(last))
            try:
                info = tar.next()
            except _BAD_HEADER as error:
                raise DamagedTar(_of(last)) from error
            if info is None:
                break
            if info.size < 0:
                raise DamagedTar(_of(last))
            tar.members.clear()  # type: ignore[attr-defined]  # TarFile would keep every header in memory
            last = info
            yield info, not info.issparse() and info.offset_data + info.size <= tar.offset
        start = _next_archive(file, tar.offset)


def _archive(file: IO[bytes], start: int) -> tarfile.TarFile | None:
    """Open the tar at a position; None if there is none. Errors: `NotATar` at the start of the file."""
    file.seek(start)
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="replace")
    except _BAD_HEADER as error:
        if start == 0:
            raise NotATar(str(error)) from error
        return None
    # `tarfile` reports an invalid first header as an error only at the start of a file
    return tar if start == 0 or tar.firstmember is not None else None  # type: ignore[attr-defined]


def _next_archive(file: IO[bytes], offset: int) -> int | None:
    """Return where the next tar begins after the one that ends at `offset`; None if only zeros follow.

    Errors: `DamagedTar`: `tarfile` stops at an invalid header and at the end of the file, but only a complete tar ends
    with a block of zeros."""
    try:
        file.seek(offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise DamagedTar(None)
        offset += BLOCK
        while data := file.read(TAIL):
            zeros = len(data) - len(data.lstrip(b"\0"))
            if zeros < len(data):
                return (offset + zeros) // BLOCK * BLOCK
            offset += len(data)
    except _DAMAGE as error:
        raise DamagedTar(None) from error
    return None


def _payloads(file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Return the offset and size of every regular file, and of every link to one, by name, as far as the tar is
    readable."""
    found: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        for info, is_whole in _headers(file, _no_report):
            name = posixpath.normpath(info.name)
            if info.isreg() and is_whole:
                found.setdefault(name, (info.offset_data, info.size))
            elif info.islnk() or info.issym():
                links.setdefault(name, _target(info))
    except DamagedTar:
        pass
    for name in links:
        target: str | None = links[name]
        for _ in range(MAX_LINKS):
            if target is None or target in found:
                break
            target = links.get(target)
        if target in found:
            found.setdefault(name, found[target])
    return found


def _target(info: tarfile.TarInfo) -> str:
    # a hard link names its target by its path in the tar, a symbolic link from its own folder
    folder = posixpath.dirname(info.name) if info.issym() else ""
    return posixpath.normpath(posixpath.join(folder, info.linkname))


def _of(info: tarfile.TarInfo | None) -> Member | None:
    name = None if info is None or not info.isreg() else split_name(info.name)
    return None if name is None or info is None else Member(*name, info.offset_data, info.size)


def _no_report(kind: str, name: str, text: str) -> None:
    pass
