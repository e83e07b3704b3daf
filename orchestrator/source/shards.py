"""Find shards from a URI: a file, a folder, globs, braces, or a list of them, on any file system that fsspec supports.

A name may be several, joined by `::` as in WebDataset. Files of macOS (`._NAME`, `__MACOSX/`) are no shards.
A folder is listed once, with sizes and versions. Names are looked up one by one only if there are few of them, or on a
web server, which cannot list folders."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any

from braceexpand import braceexpand
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from orchestrator.config import ConfigError
from orchestrator.source.schema import Shard
from orchestrator.storage.files import absolute, filesystem
from orchestrator.storage.retry import tried
from orchestrator.storage.uri_lists import split_uri

logger = logging.getLogger(__name__)

# up to this many names in a folder are looked up one by one, without listing the folder
FEW_NAMES = 8
NUM_THREADS = 16
MACOS = ("._", "__MACOSX")
"""How the names of files and folders begin in which macOS keeps attributes of other files."""
VERSION_KEYS = ("ETag", "etag", "mtime", "LastModified", "updated", "last_modified", "created", "blob_id")
ARROW = (".arrow", ".feather")
ARROW_HINT = (
    "; .arrow and .feather files are not read: write them as Parquet, for example with "
    "datasets.load_from_disk(FOLDER).to_parquet('pool.parquet')"
)


class _NotFound(Exception):
    """A path in the configuration does not exist."""


def find_shards(
    uri: str | Sequence[str] | None, *, endings: Sequence[str], sidecars: bool = False, setting: str = "source.uri"
) -> list[Shard]:
    """Find the shards at a URI or a list of URIs, unique and sorted by URI.

    `endings` are the allowed file name endings. `sidecars` also looks for a `.parquet` file with the same stem beside
    each shard. `setting` is the configuration key to name in messages.
    Errors: `ConfigError` (one line) if nothing exists, no name has an allowed ending, or a brace expansion has gaps."""
    if uri is None or not len(uri):
        raise ConfigError(
            f"{setting} is not set; expected shards ending in {' '.join(endings)}, "
            f"e.g. {setting}='data/{{00000..00010}}{endings[0]}'"
        )
    listing = _Listing()
    shards: dict[str, Shard] = {}
    for item in chain.from_iterable(map(split_uri, [uri] if isinstance(uri, str) else uri)):
        fs, path = filesystem(absolute(item))
        fs.invalidate_cache()  # a pool may have grown since this process last listed it
        try:
            matches = _matches(listing, fs, path, item, endings)
        except _NotFound as error:
            raise ConfigError(f"{setting}: {error}") from None
        for found in matches:
            shard = _shard(listing, fs, found, endings, sidecars)
            shards[shard.uri] = shard
    logger.info("%s=%s: %d shards, %d bytes", setting, uri, len(shards), sum(one.num_bytes for one in shards.values()))
    return [shards[name] for name in sorted(shards)]


def digest(shards: Iterable[Shard]) -> str:
    """Return a SHA-256 over every shard's URI, size and version."""
    state = hashlib.sha256()
    for shard in shards:
        state.update(f"{shard.uri}\t{shard.num_bytes}\t{shard.version}\n".encode())
    return state.hexdigest()


def stem(name: str, endings: Sequence[str]) -> str:
    """Return a shard's name without its ending."""
    return next(name[: -len(ending)] for ending in endings if name.lower().endswith(ending))


class _Listing:
    """Details of files by path, each listed once."""

    def __init__(self) -> None:
        self.folders: dict[tuple[AbstractFileSystem, str], dict[str, Mapping[str, Any]]] = {}

    def folder(self, fs: AbstractFileSystem, folder: str) -> dict[str, Mapping[str, Any]]:
        """List the files directly in a folder, by name; empty if the folder does not exist."""
        place = (fs, folder)
        if place not in self.folders:
            try:
                entries = _tried(fs, partial(fs.ls, folder, detail=True), folder)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            files = {_name(entry["name"]): entry for entry in entries if _is_file(fs, entry)}
            self.folders[place] = {name: entry for name, entry in files.items() if not name.startswith(MACOS)}
        return self.folders[place]

    def names(self, fs: AbstractFileSystem, folder: str, names: set[str]) -> Mapping[str, Mapping[str, Any]]:
        """Return those of the given names that are files in the folder."""
        # the hub's client lists the folder for each name that it looks up
        lists = _has_protocol(fs, "hf") or (len(names) > FEW_NAMES and not _is_web(fs))
        if (fs, folder) in self.folders or lists:
            files = self.folder(fs, folder)
            return {name: files[name] for name in names if name in files}
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            infos = pool.map(lambda name: _info(fs, _join(folder, name)), sorted(names))
            return {name: info for name, info in zip(sorted(names), infos, strict=True) if info}


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    info: Mapping[str, Any]
    whole_folder: bool


def _matches(listing: _Listing, fs: AbstractFileSystem, path: str, item: str, endings: Sequence[str]) -> list[_Found]:
    if not _has_magic(path) or fs.exists(path):
        return _plain(listing, fs, path, item, endings)
    try:
        paths = list(braceexpand(path))
    except ValueError as error:
        raise _NotFound(f"unbalanced braces in {item!r}") from error
    found = [match for name in paths if _has_glob(name) for match in _glob(listing, fs, name, endings)]
    return found + _literals(
        listing, fs, [name for name in paths if not _has_glob(name)], item, endings, expects_some=not found
    )


def _plain(listing: _Listing, fs: AbstractFileSystem, path: str, item: str, endings: Sequence[str]) -> list[_Found]:
    info = _info(fs, path)
    if info:
        if not _ends(path, endings):
            hint = ARROW_HINT if _ends(path, ARROW) else ""
            raise _NotFound(f"cannot read {item}; expected a name ending in {' '.join(endings)}{hint}")
        return [_Found(path, info, False)]
    if not fs.isdir(path):
        raise _NotFound(f"no such path: {item}")
    files = {name: info for name, info in listing.folder(fs, path).items() if _ends(name, endings)}
    if not files:
        below = _folders_with_shards(fs, path, endings)
        hint = f"; its folder {below[0]} has some: for all of its folders use {item.rstrip('/')}/*/*" if below else ""
        if any(_ends(name, ARROW) for name in listing.folder(fs, path)) or _folders_with_shards(fs, path, ARROW):
            hint = hint or ARROW_HINT
        raise _NotFound(f"no shards in {item}; expected names ending in {' '.join(endings)}{hint}")
    return [_Found(_join(path, name), info, True) for name, info in files.items()]


def _folders_with_shards(fs: AbstractFileSystem, path: str, endings: Sequence[str]) -> list[str]:
    def names(folder: str) -> list[str]:
        return [_name(name) for name in _tried(fs, partial(fs.ls, folder, detail=False), folder)]

    folders = sorted(name for name in names(path) if not name.startswith(MACOS))[:FEW_NAMES]
    below = [(name, _join(path, name)) for name in folders]
    return [name for name, folder in below if fs.isdir(folder) and any(_ends(one, endings) for one in names(folder))]


def _glob(listing: _Listing, fs: AbstractFileSystem, pattern: str, endings: Sequence[str]) -> list[_Found]:
    folder_pattern, name_pattern = posixpath.split(pattern)
    folders = [folder_pattern]
    if _has_glob(folder_pattern):
        found = _tried(fs, partial(fs.glob, folder_pattern), folder_pattern)
        folders = [str(folder) for folder in found if fs.isdir(folder) and not _name(folder).startswith(MACOS)]
    return [
        _Found(_join(folder, name), info, True)
        for folder in folders
        for name, info in listing.folder(fs, folder).items()
        if fnmatch.fnmatchcase(name, name_pattern) and _ends(name, endings)
    ]


def _literals(
    listing: _Listing,
    fs: AbstractFileSystem,
    paths: list[str],
    item: str,
    endings: Sequence[str],
    *,
    expects_some: bool,
) -> list[_Found]:
    wanted: dict[str, set[str]] = {}
    for path in paths:
        folder, name = posixpath.split(path)
        wanted.setdefault(folder, set()).add(name)
    there = {folder: listing.names(fs, folder, names) for folder, names in wanted.items()}
    missing = [path for path in paths if posixpath.basename(path) not in there[posixpath.dirname(path)]]
    if len(missing) == len(paths) and expects_some:
        hint = ARROW_HINT if _ends(item, ARROW) else ""
        raise _NotFound(f"nothing matches {item}; expected names ending in {' '.join(endings)}{hint}")
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise _NotFound(f"{len(missing)} of the {len(paths)} files of {item} are missing: {first}")
    if odd := [path for path in paths if not _ends(path, endings)]:
        raise _NotFound(f"cannot read {odd[0]}; expected a name ending in {' '.join(endings)}")
    few = all(len(names) <= FEW_NAMES for names in wanted.values())
    return [
        _Found(path, there[posixpath.dirname(path)][posixpath.basename(path)], not few) for path in dict.fromkeys(paths)
    ]


def _shard(listing: _Listing, fs: AbstractFileSystem, found: _Found, endings: Sequence[str], sidecars: bool) -> Shard:
    folder, name = posixpath.split(found.path)
    version, sidecar_uri = _version(found.info), None
    if sidecars:
        sidecar = f"{stem(name, endings)}.parquet"
        listed = found.whole_folder and not _is_web(fs)
        info = listing.folder(fs, folder).get(sidecar) if listed else _info(fs, _join(folder, sidecar))
        if info:
            version, sidecar_uri = f"{version} {_version(info)}", _uri(fs, _join(folder, sidecar))
    return Shard(
        uri=_uri(fs, found.path),
        name=name,
        num_bytes=int(found.info["size"] or 0),
        version=version,
        sidecar_uri=sidecar_uri,
    )


def _info(fs: AbstractFileSystem, path: str) -> Mapping[str, Any] | None:
    try:
        entry: Mapping[str, Any] = _tried(fs, partial(fs.info, path), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return entry if _is_file(fs, entry) else None


def _tried(fs: AbstractFileSystem, call: Callable[[], Any], path: str) -> Any:
    return call() if isinstance(fs, LocalFileSystem) else tried(call, str(fs.unstrip_protocol(path)))


def _is_file(fs: AbstractFileSystem, entry: Mapping[str, Any]) -> bool:
    # a local symbolic link to a file is listed as a link or other, not as a file
    return entry["type"] != "directory" and not (entry.get("islink") and fs.isdir(entry["name"]))


def _uri(fs: AbstractFileSystem, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _version(info: Mapping[str, Any]) -> str:
    value = next((info[key] for key in VERSION_KEYS if info.get(key)), "")
    return str(value.timestamp() if isinstance(value, datetime) else value).strip('"')


def _is_web(fs: AbstractFileSystem) -> bool:
    return _has_protocol(fs, "http")


def _has_protocol(fs: AbstractFileSystem, name: str) -> bool:
    return name in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _has_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _has_magic(path: str) -> bool:
    return _has_glob(path) or "{" in path or "}" in path


def _ends(name: str, endings: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(endings))


def _name(path: str) -> str:
    return posixpath.basename(path.rstrip("/"))


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
