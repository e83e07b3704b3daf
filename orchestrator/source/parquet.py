"""Read Parquet shards with the encoded image in a column (img2dataset's `parquet` output).

A row is a pair without an image if its `status` is not "success" or its image is null. The image column is read only
for the requested row groups. The catalog reads it only if image sizes or null positions are not known without it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.config import ConfigError, ParquetSource
from orchestrator.source.columns import catalog_columns, count_duplicates, label_columns, report_statuses, require
from orchestrator.source.header import image_size
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
        return {
            "format": "parquet",
            "image_column": config.image_column,
            "caption_column": config.caption_column,
            "key_column": config.key_column,
            "part_rows": PART_ROWS,
            "num_shards": len(self.shards),
            "shards": digest(self.shards),
        }

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

    def reads(self, part: Part) -> Reads:
        """Return the bytes to read, from the footer. Row groups are read whole."""
        if part.num_rows is None:
            return Reads(catalog=0, images=0)
        with open_parquet(part.shard.uri) as file:
            sources, extra = self._labels(file)
            labels = chunk_bytes(file, part, {*sources.values(), *extra})
            images = chunk_bytes(file, part, {self.config.image_column})
            groups = [index for index, _, _ in groups_of(file, part)]
            opened = sum(size for index, size in zip(groups, images, strict=True) if not self._is_full(file, index))
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
        config = self.config
        require(shard, schema.names, config.image_column, "source.image_column")
        require(shard, schema.names, config.caption_column, "source.caption_column")
        if config.key_column is not None:
            require(shard, schema.names, config.key_column, "source.key_column")
        kind = schema.field(config.image_column).type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ConfigError(
                f"source.image_column: column {config.image_column!r} of {shard.name} is {kind}; "
                "expected binary (the encoded image)"
            )

    def _catalog(self, file: pq.ParquetFile, part: Part, problems: Problems) -> PartCatalog:
        sources, extra = self._labels(file)
        table = read_part(file, part, list(dict.fromkeys([*sources.values(), *extra])))
        columns = catalog_columns(table, sources, part, problems)
        has_image = np.concatenate([self._present(file, *group) for group in groups_of(file, part)])
        if extra:
            has_image &= pc.fill_null(pc.equal(table["status"], "success"), False).to_numpy()
        is_bad = np.zeros(len(has_image), dtype=bool)
        if not _has_sizes(sources):
            columns["width"], columns["height"], is_bad = self._sizes(file, part, has_image)
        columns["status"] = _statuses(part, columns, has_image, is_bad, problems)
        offsets = part.first_row + np.arange(len(has_image))
        columns["image_offset"] = pa.array(offsets, pa.int64(), mask=~has_image)
        columns["image_size"] = pa.nulls(len(has_image), pa.int64())
        count_duplicates(part.shard.name, columns["key"], problems)
        catalog = pa.table(columns).select(CATALOG_SCHEMA.names).cast(CATALOG_SCHEMA)
        return PartCatalog(table=catalog, problems=problems.counts, examples=problems.examples)

    def _labels(self, file: pq.ParquetFile) -> tuple[dict[str, str], list[str]]:
        names = file.schema_arrow.names
        sources = label_columns(names, self.config.caption_column, self.config.key_column)
        return sources, ["status"] if "status" in names else []

    def _is_full(self, file: pq.ParquetFile, index: int) -> bool:
        # whether the footer guarantees that no image of the group is null
        group = file.metadata.row_group(index)
        column = group.column(file.schema_arrow.names.index(self.config.image_column))
        # a nested column before this one shifts the positions of leaf columns
        known = column.statistics if column.path_in_schema == self.config.image_column else None
        return known is not None and known.has_null_count and known.null_count == 0

    def _present(self, file: pq.ParquetFile, index: int, start: int, length: int) -> np.ndarray:
        if self._is_full(file, index):
            return np.ones(length, dtype=bool)
        images = file.read_row_group(index, columns=[self.config.image_column])[self.config.image_column]
        return images.slice(start, length).is_valid().to_numpy()

    def _sizes(self, file: pq.ParquetFile, part: Part, has_image: np.ndarray) -> tuple[pa.Array, pa.Array, np.ndarray]:
        sizes: list[tuple[int, int] | None] = []
        for index, start, length in groups_of(file, part):
            images = file.read_row_group(index, columns=[self.config.image_column])[self.config.image_column]
            sizes += [image_size(image.as_py() or b"") for image in images.slice(start, length)]
        widths = pa.array([size[0] if size else None for size in sizes], pa.int32())
        heights = pa.array([size[1] if size else None for size in sizes], pa.int32())
        return widths, heights, has_image & np.array([size is None for size in sizes])

    def _images(self, file: pq.ParquetFile, part: Part, wanted: np.ndarray) -> Iterator[bytes | None]:
        position, column = 0, self.config.image_column
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
                images = file.read_row_group(index, columns=[column])[column]
                for row in wanted[position:stop]:
                    yield None if np.isnan(row) else images[int(row) - first].as_py()
            else:
                yield from (None for _ in range(position, stop))
            position = stop
        assert position == len(wanted), f"{len(wanted) - position} rows are outside part {part.index}"


def _has_sizes(sources: Collection[str]) -> bool:
    return {"width", "height"} <= set(sources)


def _statuses(
    part: Part, columns: dict[str, pa.Array], has_image: np.ndarray, is_bad: np.ndarray, problems: Problems
) -> pa.Array:
    has_caption = columns["caption"].is_valid().to_numpy(zero_copy_only=False)
    status = np.where(has_caption, Status.OK, Status.MISSING_CAPTION)
    status = np.where(is_bad, Status.BAD_IMAGE, status)
    status = np.where(has_image, status, Status.MISSING_IMAGE)
    report_statuses(part.shard.name, columns["key"], status, problems)
    return pa.array(status.astype(np.int8))
