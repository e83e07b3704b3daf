"""Read caption tables without images (Parquet, CSV, TSV, JSON lines), such as a pool's metadata before download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from orchestrator.config import TableSource
from orchestrator.source.columns import catalog_columns, count_duplicates, label_columns, report_statuses, require
from orchestrator.source.row_groups import DamagedParquet, chunk_bytes, cut_shards, open_parquet, read_part
from orchestrator.source.schema import CATALOG_SCHEMA, Part, PartCatalog, Problems, Reads, Shard, Status, unreadable
from orchestrator.source.shards import digest, find_shards
from orchestrator.source.text_table import ENDINGS as TEXT_ENDINGS
from orchestrator.source.text_table import read_text_table
from orchestrator.storage.files import StoreError

PARQUET = ".parquet"
ENDINGS = (PARQUET, *TEXT_ENDINGS)


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """A table of captions. Parquet files are split into parts of up to `part_rows` rows; a text file is one part."""

    config: TableSource
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, config: TableSource) -> CaptionTable:
        """List the files. Errors: `ConfigError` if there are none."""
        return cls(config, tuple(find_shards(config.uri, endings=ENDINGS)))

    @property
    def has_images(self) -> bool:
        """False: a caption table has no images."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return the settings and the digest of the shards."""
        config = self.config
        return {
            "format": "table",
            "caption_column": config.caption_column,
            "key_column": config.key_column,
            "part_rows": config.part_rows,
            "num_shards": len(self.shards),
            "shards": digest(self.shards),
        }

    def parts(self) -> list[Part]:
        """Return row ranges of Parquet files and whole text files. Errors: `ConfigError` if a column is missing."""
        tables = [shard for shard in self.shards if _is_parquet(shard)]
        by_uri: dict[str, list[Part]] = {}
        for part in cut_shards(tables, self.config.part_rows, self._check):
            by_uri.setdefault(part.shard.uri, []).append(part)
        ranges = [
            (shard, part.first_row, part.num_rows)
            for shard in self.shards
            for part in (by_uri.get(shard.uri, []) if _is_parquet(shard) else [_whole(shard)])
        ]
        return [
            Part(index=i, shard=shard, first_row=first, num_rows=num) for i, (shard, first, num) in enumerate(ranges)
        ]

    def catalog(self, part: Part) -> PartCatalog:
        """Read the catalog of a part: no images; image sizes if the table has columns for them.

        Errors: `ConfigError` for a text table that cannot be parsed or lacks a column."""
        problems = Problems()
        try:
            table, sources = self._labels(part, problems)
        except DamagedParquet as error:
            return unreadable(part, problems, f"not readable as Parquet ({error})")
        columns = catalog_columns(table, sources, part, problems)
        has_caption = columns["caption"].is_valid().to_numpy(zero_copy_only=False)
        status = np.where(has_caption, Status.OK, Status.MISSING_CAPTION)
        report_statuses(part.shard.name, columns["key"], status, problems)
        count_duplicates(part.shard.name, columns["key"], problems)
        columns["status"] = pa.array(status.astype(np.int8))
        for name in ("image_offset", "image_size"):
            columns[name] = pa.nulls(table.num_rows, pa.int64())
        catalog = pa.table(columns).select(CATALOG_SCHEMA.names).cast(CATALOG_SCHEMA)
        return PartCatalog(table=catalog, problems=problems.counts, examples=problems.examples)

    def rows(self, part: Part) -> pa.Table:
        """Read all columns of the table for the rows of a part, in row order.

        Errors: `StoreError` if a column is damaged; the catalog may not have read that column."""
        if not _is_parquet(part.shard):
            return read_text_table(part.shard, Problems()).to_arrow()
        try:
            with open_parquet(part.shard.uri) as file:
                return read_part(file, part, file.schema_arrow.names)
        except DamagedParquet as error:
            raise StoreError(f"{part.shard.uri} is not readable as Parquet ({error}); download it again") from error

    def key_column(self, names: list[str]) -> str | None:
        """Return the name of the key column; None if rows are numbered instead."""
        return self._sources(names).get("key")

    def reads(self, part: Part) -> Reads:
        """Return the bytes of the catalog's columns in Parquet, or of the whole text file."""
        if not _is_parquet(part.shard):
            return Reads(catalog=part.shard.num_bytes)
        if part.num_rows is None:
            return Reads(catalog=0)
        with open_parquet(part.shard.uri) as file:
            sources = self._sources(file.schema_arrow.names)
            return Reads(catalog=sum(chunk_bytes(file, part, set(sources.values()))))

    def images(self, part: Part, rows: pa.Table) -> NoReturn:
        """Raise `TypeError`: a caption table has no images."""
        raise TypeError(f"{part.shard.name} is a caption table: it has no images")

    def _labels(self, part: Part, problems: Problems) -> tuple[pa.Table, dict[str, str]]:
        if not _is_parquet(part.shard):
            table = read_text_table(part.shard, problems).to_arrow()
            self._check(part.shard, table.schema)
            return table, self._sources(table.column_names)
        with open_parquet(part.shard.uri) as file:
            if part.num_rows is None:
                raise DamagedParquet("its footer was damaged when the files were listed")
            sources = self._sources(file.schema_arrow.names)
            return read_part(file, part, list(dict.fromkeys(sources.values()))), sources

    def _sources(self, names: list[str]) -> dict[str, str]:
        return label_columns(names, self.config.caption_column, self.config.key_column)

    def _check(self, shard: Shard, schema: pa.Schema) -> None:
        require(shard, schema.names, self.config.caption_column, "source.caption_column")
        if self.config.key_column is not None:
            require(shard, schema.names, self.config.key_column, "source.key_column")


def _is_parquet(shard: Shard) -> bool:
    return shard.name.lower().endswith(PARQUET)


def _whole(shard: Shard) -> Part:
    return Part(index=0, shard=shard, first_row=0, num_rows=None)
