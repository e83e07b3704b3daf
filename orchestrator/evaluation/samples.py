"""List and read the samples of an evaluation set.

Members with one key form one sample wherever they are in the tar. Captions and images are read by the pool's reader.
Samples that cannot be used are counted by kind, as in a pool. A key without an image, a label or a caption, such as
that of a README, is no sample."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa

from orchestrator.errors import UserError
from orchestrator.evaluation.sets import EvaluationSet
from orchestrator.source import CATALOG_SCHEMA, IMAGE_COLUMNS, Part, Status
from orchestrator.source.schema import Problems
from orchestrator.source.tar import DamagedTar, Member, NotATar, members, open_tar, read_member
from orchestrator.source.webdataset import IMAGE_EXTENSIONS

IMAGE_SCHEMA = pa.schema([CATALOG_SCHEMA.field(name) for name in IMAGE_COLUMNS])
INDEX = re.compile(r"[0-9]{1,9}")
# bytes of a `cls` or `npy` member that are read
MAX_MEMBER = 4 << 20


class Sample(NamedTuple):
    """An image with its label, caption and group: the first number in its `npy` member, -1 if there is none.

    `image` is None if the sample cannot be used."""

    key: str
    image: bytes | None
    label: int
    caption: str
    group: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The samples of a tar: the usable ones in order, their `rows` for the reader, and `problems` of the others."""

    part: Part
    samples: list[Sample]
    rows: pa.Table
    problems: Problems
    num_unusable: int


def read_samples(dataset: EvaluationSet, part: Part) -> Iterator[Sample]:
    """Yield the samples of a tar, the ones without a usable image, label or caption last.

    Errors: `UserError` for a damaged tar."""
    listing = list_samples(dataset, part)
    images = dataset.source.images(part, listing.rows)
    for sample, image in zip(listing.samples, images, strict=True):
        yield sample._replace(image=image)
    for _ in range(listing.num_unusable):
        yield Sample("", None, 0, "", -1)


def list_samples(dataset: EvaluationSet, part: Part) -> Listing:
    """Return the samples of a tar without their images. Errors: `UserError` for a damaged tar."""
    return _labelled(part) if dataset.has_classes else _captioned(dataset, part)


def _captioned(dataset: EvaluationSet, part: Part) -> Listing:
    catalog, problems = dataset.source.catalog(part), Problems()
    if catalog.broken:
        raise damaged(part.shard.uri)
    usable: list[int] = []
    num_unusable = 0
    for row, (key, status, caption) in enumerate(
        zip(*(catalog.table[name].to_pylist() for name in ("key", "status", "caption")), strict=True)
    ):
        if status == Status.OK:
            usable.append(row)
        elif caption is not None or status != Status.MISSING_IMAGE:
            num_unusable += 1
            kind = Status(status).name.lower()
            problems.add(kind, f"{part.shard.name}/{key}: {kind.replace('_', ' ')}")
    rows = catalog.table.take(pa.array(usable, pa.int64()))
    found = zip(rows["key"].to_pylist(), rows["caption"].to_pylist(), strict=True)
    samples = [Sample(key, None, 0, caption.strip(), -1) for key, caption in found]
    return Listing(part, samples, rows.select(IMAGE_COLUMNS), problems, num_unusable)


@dataclass(slots=True)
class _Found:
    image: Member | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


def _labelled(part: Part) -> Listing:
    problems, samples, rows, num_unusable = Problems(), [], [], 0
    found, is_seekable = _members(part.shard.uri)
    for key, one in found.items():
        name, label = f"{part.shard.name}/{key}", one.texts.get("cls")
        text = "" if label is None else label.decode(errors="replace").strip()
        if one.image is None and label is None:
            continue
        if one.image is not None and INDEX.fullmatch(text):
            samples.append(Sample(key, None, int(text), "", _group(name, one.texts.get("npy"), problems)))
            offset = one.image.offset if is_seekable else None
            rows.append({"key": key, "status": Status.OK, "image_offset": offset, "image_size": one.image.size})
            continue
        num_unusable += 1
        if one.image is None:
            problems.add("missing_image", f"{name}: no image")
        elif label is None:
            problems.add("missing_label", f"{name}: no cls member")
        else:
            problems.add("bad_label", f"{name}: got class {text[:40]!r}, expected an index from 0")
    return Listing(part, samples, pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA), problems, num_unusable)


def _members(uri: str) -> tuple[dict[str, _Found], bool]:
    found: dict[str, _Found] = {}
    with _whole(uri), open_tar(uri) as (file, is_seekable):
        for member in members(file):
            one = found.setdefault(member.key, _Found())
            if member.extension in IMAGE_EXTENSIONS:
                one.image = one.image or member
            elif member.extension in ("cls", "npy"):
                one.texts.setdefault(member.extension, read_member(file, member, MAX_MEMBER))
    return found, is_seekable


def _group(name: str, npy: bytes | None, problems: Problems) -> int:
    if npy is None:
        return -1
    try:
        first = float(np.ravel(np.load(io.BytesIO(npy), allow_pickle=False)).astype(float)[0])
    except (ValueError, TypeError, IndexError, EOFError):
        problems.add("bad_group", f"{name}.npy: expected an array of numbers that starts with the group")
        return -1
    return int(first) if 0 <= first < 2**31 else -1


def has_member(shard_uri: str, extension: str) -> bool:
    """Whether a tar has a member with this extension. Errors: `UserError` for a damaged tar."""
    with open_whole(shard_uri) as file:
        return any(member.extension == extension for member in members(file))


def extensions(shard_uri: str) -> list[str]:
    """Return the extensions of a tar's members. Errors: `UserError` for a damaged tar."""
    with open_whole(shard_uri) as file:
        return sorted({member.extension for member in members(file)})


@contextmanager
def open_whole(shard_uri: str) -> Iterator[IO[bytes]]:
    """Open a tar of a set, for `members`. Errors: `UserError` if it is damaged, also in the body of the `with`."""
    with _whole(shard_uri), open_tar(shard_uri) as (file, _):
        yield file


@contextmanager
def _whole(shard_uri: str) -> Iterator[None]:
    try:
        yield
    except (DamagedTar, NotATar) as error:
        raise damaged(shard_uri) from error


def damaged(shard_uri: str) -> UserError:
    """Return the error for a tar that is cut, or that is none."""
    return UserError(f"{shard_uri} is damaged; an evaluation set must be whole")
