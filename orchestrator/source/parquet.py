"""Read Parquet shards with the encoded image in a column (img2dataset's `parquet` output).

A row is a pair without an image if its `status` is none of success or its image is null. The image column is read only
for the requested row groups. The catalog reads it only if image sizes or null positions are not known without it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config import ParquetSource
from orchestrator.source.captions import CAPTION_NAMES
from orchestrator.source.columns import (
    KEY_NAMES,
    catalog_columns,
    check_captions,
    check_keys,
    count_captions,
    count_duplicates,
    find_required,
    label_columns,
    report_ignored,
    report_statuses,
)
from orchestrator.source.download_status import STATUS, has_succeeded, status_column
from orchestrator.source.fields import parquet_fields
from orchestrator.source.header import image_size
from orchestrator.source.image_column import IMAGE_NAMES, ImageColumn
from orchestrator.source.record_fields import type_of
from orchestrator.source.row_groups import DamagedParquet, chunk_bytes, cut_shards, groups_of, open_parquet, read_part
from orchestrator.source.schema import CATALOG_SCHEMA, Part, PartCatalog, Problems, Reads, Shard, Status, unreadable
from orchestrator.source.shards import digest, find_shards
from orchestrator.storage.files import StoreError

ENDINGS = (".parquet",)
PART_ROWS = 20_000
"""A shard of img2dataset has 10,000 pairs and is one part; a larger file is split."""


@dataclass(frozen=True, slots=True)
class ParquetImages:
    """Parquet shards with image bytes."""

    config: ParquetSource
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, config: ParquetSource) -> ParquetImages:
        """List the shards. Errors: `ConfigError` if there are none."""
        return cls(config, tuple(find_shards(config.uri, endings=ENDINGS)))

    @property
    def has_images(self) -> bool:
        """True: every shard has an image column."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return the settings and the digest of the shards."""
        config = self.config
        identity: dict[str, Any] = {
            "format": "parquet",
            # the first of the usual names, so that naming it changes nothing
            "image_column": config.image_column or IMAGE_NAMES[0],
            "caption_column": config.caption_column or CAPTION_NAMES[0],
            "key_column": config.key_column,
            "part_rows": PART_ROWS,
            "num_shards": len(self.shards),
            "shards": digest(self.shards),
        }
        default = ParquetSource.model_fields["success_status"].default
        if config.success_status != default:
            identity["success_status"] = config.success_status
        return identity

    def parts(self) -> list[Part]:
        """Return ranges of row groups. Errors: `ConfigError` if a column is missing."""
        return cut_shards(self.shards, PART_ROWS, self._check)

    def catalog(self, part: Part) -> PartCatalog:
        """Read the catalog of a range of rows. A file that is not Parquet has no rows."""
        problems = Problems()
        try:
            with open_parquet(part.shard.uri) as file:
                if part.num_rows is None:
                    raise DamagedParquet("its footer was damaged when the shards were listed")
                return self._catalog(file, part, problems)
        except DamagedParquet as error:
            return unreadable(part, problems, f"not readable as Parquet ({error})")

    def fields(self, part: Part, keys: Sequence[str], names: Sequence[str]) -> pa.Table:
        """Read columns of a range of rows."""
        return parquet_fields(part, names)

    def reads(self, part: Part) -> Reads:
        """Return the bytes to read, from the footer. Row groups are read whole."""
        if part.num_rows is None:
            return Reads(catalog=0, images=0)
        with open_parquet(part.shard.uri) as file:
            sources, status = self._labels(part.shard, file.schema_arrow)
            labels = chunk_bytes(file, part, {*sources.values(), *status})
            column = self._image_column(part.shard, file.schema_arrow)
            images = chunk_bytes(file, part, {column.path})
            groups = [index for index, _, _ in groups_of(file, part)]
            opened = sum(size for index, size in zip(groups, images, strict=True) if not column.has_all(file, index))
            opened += 0 if _has_sizes(sources) else sum(images)
        return Reads(
            catalog=sum(labels) + opened, images=sum(images), rows_per_read=part.num_rows / max(1, len(groups))
        )

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """Yield the encoded images of rows, from the row groups that contain them."""
        wanted = rows["image_offset"].to_numpy(zero_copy_only=False).astype(np.float64)
        try:
            with open_parquet(part.shard.uri) as file:
                yield from self._images(file, part, wanted)
        except DamagedParquet as error:
            raise StoreError(f"{part.shard.uri}: {error}; the shard changed since its catalog was made") from error

    def _check(self, shard: Shard, schema: pa.Schema) -> None:
        self._image_column(shard, schema)
        caption = self._caption_column(shard, schema)
        check_captions(shard, type_of(schema, caption), caption)
        check_keys(shard, schema, self._key_column(schema))
        status_column(shard, schema, self.config.success_status)

    def _image_column(self, shard: Shard, schema: pa.Schema) -> ImageColumn:
        return ImageColumn.find(shard, schema, self.config.image_column)

    def _caption_column(self, shard: Shard, schema: pa.Schema) -> str:
        return find_required(shard, schema, self.config.caption_column, CAPTION_NAMES, "source.caption_column")

    def _key_column(self, schema: pa.Schema) -> str | None:
        # the default name is a usual one: a file without it is not an error
        key = self.config.key_column
        return None if key == KEY_NAMES[0] and key not in schema.names else key

    def _catalog(self, file: pq.ParquetFile, part: Part, problems: Problems) -> PartCatalog:
        schema = file.schema_arrow
        sources, status = self._labels(part.shard, schema)
        report_ignored(part.shard, schema, sources, problems)
        table = read_part(file, part, list(dict.fromkeys([*sources.values(), *status])))
        columns = catalog_columns(table, sources, part, problems)
        images = self._image_column(part.shard, schema)
        has_image = np.concatenate([_present(file, images, *group) for group in groups_of(file, part)])
        if status and self.config.success_status is not None:
            has_image &= has_succeeded(part.shard, table[STATUS], self.config.success_status, problems)
        is_bad = np.zeros(len(has_image), dtype=bool)
        if not _has_sizes(sources):
            columns["width"], columns["height"], is_bad = _sizes(file, images, part, has_image)
        columns["status"] = _statuses(part, columns, has_image, is_bad, problems)
        offsets = part.first_row + np.arange(len(has_image))
        columns["image_offset"] = pa.array(offsets, pa.int64(), mask=~has_image)
        columns["image_size"] = pa.nulls(len(has_image), pa.int64())
        count_duplicates(part.shard.name, columns["key"], problems)
        catalog = pa.table(columns).select(CATALOG_SCHEMA.names).cast(CATALOG_SCHEMA)
        counts = count_captions(columns, sources)
        return PartCatalog(table=catalog, problems=problems.counts, examples=problems.examples, captions=counts)

    def _labels(self, shard: Shard, schema: pa.Schema) -> tuple[dict[str, str], list[str]]:
        sources = label_columns(schema, self._caption_column(shard, schema), self._key_column(schema))
        return sources, status_column(shard, schema, self.config.success_status)

    def _images(self, file: pq.ParquetFile, part: Part, wanted: np.ndarray) -> Iterator[bytes | None]:
        position, column = 0, self._image_column(part.shard, file.schema_arrow)
        found = wanted[np.isfinite(wanted)]
        if part.num_rows is None or ((found < part.first_row) | (found >= part.first_row + part.num_rows)).any():
            raise StoreError(
                f"{part.shard.uri}: row groups differ from its catalog; the shard changed since it was made"
            )
        for index, start, length in groups_of(file, part):
            first = sum(file.metadata.row_group(i).num_rows for i in range(index))
            stop = position
            while stop < len(wanted) and not wanted[stop] >= first + start + length:
                stop += 1
            if np.isfinite(wanted[position:stop]).any():
                images = column.read(file, index)
                for row in wanted[position:stop]:
                    yield None if np.isnan(row) else images[int(row) - first].as_py()
            else:
                yield from (None for _ in range(position, stop))
            position = stop
        assert position == len(wanted), f"{len(wanted) - position} rows are outside part {part.index}"


def _has_sizes(sources: Collection[str]) -> bool:
    return {"width", "height"} <= set(sources)


def _present(file: pq.ParquetFile, images: ImageColumn, index: int, start: int, length: int) -> np.ndarray:
    if images.has_all(file, index):
        return np.ones(length, dtype=bool)
    return images.read(file, index).slice(start, length).is_valid().to_numpy()


def _sizes(
    file: pq.ParquetFile, images: ImageColumn, part: Part, has_image: np.ndarray
) -> tuple[pa.Array, pa.Array, np.ndarray]:
    sizes: list[tuple[int, int] | None] = []
    for index, start, length in groups_of(file, part):
        found = images.read(file, index).slice(start, length)
        sizes += [image_size(image.as_py() or b"") for image in found]
    widths = pa.array([size[0] if size else None for size in sizes], pa.int32())
    heights = pa.array([size[1] if size else None for size in sizes], pa.int32())
    return widths, heights, has_image & np.array([size is None for size in sizes])


def _statuses(
    part: Part, columns: dict[str, pa.Array], has_image: np.ndarray, is_bad: np.ndarray, problems: Problems
) -> pa.Array:
    has_caption = columns["caption"].is_valid().to_numpy(zero_copy_only=False)
    status = np.where(has_caption, Status.OK, Status.MISSING_CAPTION)
    status = np.where(is_bad, Status.BAD_IMAGE, status)
    status = np.where(has_image, status, Status.MISSING_IMAGE)
    report_statuses(part.shard.name, columns["key"], status, problems)
    return pa.array(status.astype(np.int8))
