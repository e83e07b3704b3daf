"""Read WebDataset tars: image, text and json members grouped into samples; one pass over the headers gives the catalog.

Captions and sizes come from img2dataset's Parquet file beside the tar if it lists the pair. Otherwise they come from
the pair's text and `json` members, and the size from the first bytes of the image. Small members are read during the
same pass, so a remote tar is read once. Members with one key form one sample wherever they are in the tar; rows are in
order of first appearance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from orchestrator.source.fields import tar_fields
from orchestrator.source.header import IMAGE_EXTENSIONS
from orchestrator.source.samples import SampleWalk
from orchestrator.source.schema import Part, PartCatalog, Problems, Reads, Shard, Status, unreadable
from orchestrator.source.shards import digest, find_shards
from orchestrator.source.sidecar import Sidecar, read_sidecar
from orchestrator.source.tar import DamagedTar, NotATar, members, open_tar, read_member
from orchestrator.storage.files import StoreError
from orchestrator.storage.ranges import read_spans

ENDINGS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True)
class WebDataset:
    """Tar shards in the layout of img2dataset."""

    shards: tuple[Shard, ...]
    caption_column: str | None = None

    @classmethod
    def open(cls, uri: str | Sequence[str] | None, caption_column: str | None = None) -> WebDataset:
        """List the shards. Errors: `ConfigError` if there are none."""
        return cls.of(find_shards(uri, endings=ENDINGS, sidecars=True), caption_column)

    @classmethod
    def of(cls, shards: Sequence[Shard], caption_column: str | None = None) -> WebDataset:
        """Return the given shards; `caption_column` may begin with a dot, as messages show the extensions."""
        return cls(tuple(shards), caption_column and caption_column.removeprefix("."))

    @property
    def has_images(self) -> bool:
        """True: samples have images."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return the format, the name of the captions if one is set, and the digest of the shards."""
        named = {} if self.caption_column is None else {"caption_column": self.caption_column}
        return {"format": "webdataset", **named, "num_shards": len(self.shards), "shards": digest(self.shards)}

    def parts(self) -> list[Part]:
        """Return one part per tar."""
        return [Part(index=i, shard=shard, first_row=0, num_rows=None) for i, shard in enumerate(self.shards)]

    def catalog(self, part: Part) -> PartCatalog:
        """Read the catalog of a tar. A truncated tar gives the pairs that are complete before the cut."""
        problems = Problems()
        sidecar = _sidecar(part.shard, self.caption_column, problems)
        walk = SampleWalk(part.shard.name, sidecar, self.caption_column, problems)
        is_seekable = True
        try:
            with open_tar(part.shard.uri) as (file, is_seekable):
                for member in members(file, walk.report):
                    walk.add(file, member)
            walk.check_sidecar()
        except NotATar as error:
            return unreadable(part, problems, f"not a tar ({error})")
        except DamagedTar as error:
            walk.cut(error.member)
        return PartCatalog(
            table=walk.table(with_offsets=is_seekable),
            problems=problems.counts,
            examples=problems.examples,
            broken="truncated_shard" in problems.counts,
            captions=walk.captions,
        )

    def fields(self, part: Part, keys: Sequence[str], names: Sequence[str]) -> pa.Table:
        """Read fields from the sidecar, or from JSON members for pairs that it does not list."""
        return tar_fields(part.shard, keys, names)

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


def _sidecar(shard: Shard, caption_column: str | None, problems: Problems) -> Sidecar:
    if shard.sidecar_uri is None:
        return Sidecar()
    sidecar = read_sidecar(shard.sidecar_uri, caption_column)
    if sidecar.error:
        problems.add("unreadable_sidecar", f"{shard.sidecar_uri}: {sidecar.error}; captions taken from the tar")
    return sidecar


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
