"""Read WebDataset tars: image, txt and json members grouped into samples; one pass over the headers gives the catalog.

Captions and sizes come from img2dataset's Parquet file beside the tar if it lists the pair. Otherwise they come from
the pair's `txt` and `json` members, and the size from the first bytes of the image. Small members are read during the
same pass, so a remote tar is read once. Members with one key form one sample wherever they are in the tar; rows are in
order of first appearance."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa

from orchestrator.source.header import LONG_PREFIX, PREFIX, image_size
from orchestrator.source.schema import CATALOG_SCHEMA, Part, PartCatalog, Problems, Reads, Shard, Status, unreadable
from orchestrator.source.shards import digest, find_shards
from orchestrator.source.sidecar import Labels, labels_of, read_sidecar
from orchestrator.source.tar import DamagedTar, Member, NotATar, members, open_tar, read_member
from orchestrator.storage.files import StoreError
from orchestrator.storage.ranges import read_spans

logger = logging.getLogger(__name__)

ENDINGS = (".tar", ".tar.gz", ".tgz")
# in bytes: a longer txt or json member is not read
MAX_TEXT = 4 << 20
IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})


@dataclass(frozen=True, slots=True)
class WebDataset:
    """Tar shards in the layout of img2dataset."""

    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, uri: str | Sequence[str] | None) -> WebDataset:
        """List the shards. Errors: `ConfigError` if there are none."""
        return cls(tuple(find_shards(uri, endings=ENDINGS, sidecars=True)))

    @property
    def has_images(self) -> bool:
        """True: samples have images."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return the format and the digest of the shards."""
        return {"format": "webdataset", "num_shards": len(self.shards), "shards": digest(self.shards)}

    def parts(self) -> list[Part]:
        """Return one part per tar."""
        return [Part(index=i, shard=shard, first_row=0, num_rows=None) for i, shard in enumerate(self.shards)]

    def catalog(self, part: Part) -> PartCatalog:
        """Read the catalog of a tar. A truncated tar gives the pairs that are complete before the cut."""
        problems = Problems()
        known = _sidecar_labels(part.shard, problems)
        walk = _Walk(part.shard.name, known, problems)
        is_seekable = True
        try:
            with open_tar(part.shard.uri) as (file, is_seekable):
                for member in members(file):
                    walk.add(file, member)
        except NotATar as error:
            return unreadable(part, problems, f"not a tar ({error})")
        except DamagedTar as error:
            walk.cut(error.member)
        table = walk.table(with_offsets=is_seekable)
        return PartCatalog(
            table=table,
            problems=problems.counts,
            examples=problems.examples,
            broken="truncated_shard" in problems.counts,
        )

    def reads(self, part: Part) -> Reads:
        """Return the size of the tar: the catalog reads all of it."""
        return Reads(catalog=part.shard.num_bytes)

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """Yield the encoded images of rows by range requests; a compressed tar is read in sequence."""
        has_image = [status != Status.MISSING_IMAGE for status in rows["status"].to_pylist()]
        offsets, sizes = rows["image_offset"].to_pylist(), rows["image_size"].to_pylist()
        if any(has and offset is None for has, offset in zip(has_image, offsets, strict=True)):
            found = _walk_images(part.shard, rows.filter(pa.array(has_image))["key"].to_pylist())
        else:
            spans = zip(offsets, sizes, strict=True)
            found = read_spans(part.shard.uri, [span for span, has in zip(spans, has_image, strict=True) if has])
        for has in has_image:
            yield next(found) if has else None


@dataclass(slots=True)
class _Sample:
    labels: Labels
    extensions: set[str] = field(default_factory=set)
    text: str | None = None
    image: Member | None = None
    is_bad: bool = False


class _Walk:
    """Collects the samples of a tar from its members."""

    def __init__(self, shard_name: str, known: dict[str, Labels], problems: Problems) -> None:
        self.shard_name = shard_name
        self.known = known
        self.problems = problems
        self.samples: dict[str, _Sample] = {}
        self.last_key: str | None = None

    def add(self, file: IO[bytes], member: Member) -> None:
        """Add a member; reads its payload only if needed."""
        self.last_key = member.key
        sample = self.samples.setdefault(member.key, _Sample(self.known.get(member.key) or Labels()))
        if member.extension in sample.extensions:
            self.problems.add("duplicate_key", f"{self._name(member)}: a second {member.extension} member, ignored")
            return
        sample.extensions.add(member.extension)
        if member.extension in IMAGE_EXTENSIONS:
            self._add_image(file, member, sample)
        elif member.extension == "txt" and member.key not in self.known:
            sample.text = self._text(file, member)
        elif member.extension == "json" and member.key not in self.known:
            self._add_json(file, member, sample)

    def cut(self, member: Member | None) -> None:
        """Drop the sample that a truncated tar leaves incomplete."""
        # the first sample shows which members a complete sample has
        whole = next(iter(self.samples.values())).extensions if self.samples else set()
        if self.last_key is not None and (member or not whole <= self.samples[self.last_key].extensions):
            del self.samples[self.last_key]
        text = f"{self.shard_name}: truncated after {len(self.samples)} pairs"
        logger.warning("truncated shard: %s", text)
        self.problems.add("truncated_shard", text)

    def table(self, *, with_offsets: bool) -> pa.Table:
        """Return the samples as a catalog table."""
        rows = [self._row(key, sample, with_offsets) for key, sample in self.samples.items()]
        return pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA)

    def _add_image(self, file: IO[bytes], member: Member, sample: _Sample) -> None:
        if sample.image is not None:
            return
        sample.image = member
        if member.key in self.known and sample.labels.width and sample.labels.height:
            return
        size = image_size(read_member(file, member, PREFIX))
        if size is None and member.size > PREFIX:
            size = image_size(read_member(file, member, LONG_PREFIX))
        sample.is_bad = size is None
        sample.labels.width, sample.labels.height = size or (None, None)

    def _add_json(self, file: IO[bytes], member: Member, sample: _Sample) -> None:
        try:
            fields = json.loads(self._text(file, member) or "")
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            self.problems.add("bad_json", f"{self._name(member)}: its json member is not an object")
            return
        found = labels_of(fields)
        labels = sample.labels
        labels.caption, labels.uid, labels.url = found.caption, found.uid, found.url

    def _text(self, file: IO[bytes], member: Member) -> str | None:
        if member.size > MAX_TEXT:
            self.problems.add(
                "long_text", f"{self._name(member)}: its {member.extension} member has {member.size:,} bytes"
            )
            return None
        return self._decode(member, read_member(file, member))

    def _decode(self, member: Member, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.problems.add("bad_utf8", f"{self._name(member)}: its {member.extension} member is not UTF-8")
            return data.decode(errors="replace")

    def _row(self, key: str, sample: _Sample, with_offsets: bool) -> dict[str, Any]:
        labels, image = sample.labels, sample.image
        caption = labels.caption if sample.text is None else sample.text
        status = self._status(key, sample, caption)
        return {
            "key": key,
            "caption": caption,
            "width": labels.width,
            "height": labels.height,
            "status": status,
            "image_offset": image.offset if image and with_offsets else None,
            "image_size": image.size if image else None,
            "uid": labels.uid,
            "url": labels.url,
        }

    def _status(self, key: str, sample: _Sample, caption: str | None) -> Status:
        name = f"{self.shard_name}/{key}"
        if sample.image is None:
            self.problems.add("missing_image", f"{name}: no image")
            return Status.MISSING_IMAGE
        if sample.is_bad:
            self.problems.add("bad_image", f"{name}: its {sample.image.extension} member has no readable image header")
            return Status.BAD_IMAGE
        if caption is None:
            self.problems.add("missing_caption", f"{name}: no caption")
            return Status.MISSING_CAPTION
        return Status.OK

    def _name(self, member: Member) -> str:
        return f"{self.shard_name}/{member.key}"


def _sidecar_labels(shard: Shard, problems: Problems) -> dict[str, Labels]:
    if shard.sidecar_uri is None:
        return {}
    sidecar = read_sidecar(shard.sidecar_uri)
    if sidecar.error:
        problems.add("unreadable_sidecar", f"{shard.sidecar_uri}: {sidecar.error}; captions taken from the tar")
    return sidecar.labels


def _walk_images(shard: Shard, keys: list[str]) -> Iterator[bytes]:
    wanted, waiting, position = set(keys), dict[str, bytes](), 0
    try:
        with open_tar(shard.uri) as (file, _):
            for member in members(file):
                if member.key in wanted and member.extension in IMAGE_EXTENSIONS:
                    wanted.remove(member.key)
                    waiting[member.key] = read_member(file, member)
                while position < len(keys) and keys[position] in waiting:
                    yield waiting.pop(keys[position])
                    position += 1
                if position == len(keys):
                    return
    except (DamagedTar, NotATar) as error:
        raise StoreError(
            f"{shard.uri}: truncated before {keys[position]}; the shard changed since its catalog was made"
        ) from error
    if position < len(keys):
        raise StoreError(f"{shard.uri}: no image for {keys[position]}; the shard changed since its catalog was made")
