"""Read caption tables without images (Parquet, CSV, TSV, JSON lines), such as a pool's metadata before download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from orchestrator.config import ConfigError, TableSource
from orchestrator.source.captions import CAPTION_NAMES
from orchestrator.source.columns import (
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
from orchestrator.source.fields import parquet_fields, table_fields
from orchestrator.source.plain_values import without_views
from orchestrator.source.record_fields import type_of
from orchestrator.source.row_groups import DamagedParquet, chunk_bytes, cut_shards, open_parquet, read_part
from orchestrator.source.schema import (
    CATALOG_SCHEMA,
    Part,
    PartCatalog,
    Problems,
    Reads,
    Shard,
    Status,
    UnreadableText,
    unreadable,
)
from orchestrator.source.shards import digest, find_shards
from orchestrator.source.text_table import VERSION as TEXT_VERSION
from orchestrator.source.text_table import endings_for, is_delimited, read_text_table
from orchestrator.storage.files import StoreError

PARQUET = ".parquet"


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """A table of captions. Parquet files are split into parts of up to `part_rows` rows; a text file is one part."""

    config: TableSource
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, config: TableSource) -> CaptionTable:
        """List the files. Errors: `ConfigError` if there are none."""
        return cls(config, tuple(find_shards(config.uri, endings=(PARQUET, *endings_for(config.uri)))))

    @property
    def has_images(self) -> bool:
        """False: a caption table has no images."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return the settings and the digest of the shards."""
        config = self.config
        identity: dict[str, Any] = {
            "format": "table",
            # the first of the usual names, so that naming it changes nothing
            "caption_column": config.caption_column or CAPTION_NAMES[0],
            "key_column": config.key_column,
            "part_rows": config.part_rows,
            "num_shards": len(self.shards),
            "shards": digest(self.shards),
        }
        # only what text files depend on, so that Parquet files keep their fingerprint
        if not all(map(_is_parquet, self.shards)):
            identity |= {"text_version": TEXT_VERSION}
        if any(is_delimited(shard.name) for shard in self.shards):
            identity |= {"quoting": config.quoting, "columns": config.columns}
        return identity

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

        Errors: `ConfigError` for a text table that cannot be parsed with these settings or lacks a column."""
        problems = Problems()
        try:
            table, sources = self._labels(part, problems)
        except DamagedParquet as error:
            return unreadable(part, problems, f"not readable as Parquet ({error})")
        except UnreadableText as error:
            return unreadable(part, problems, error.reason)
        columns = catalog_columns(table, sources, part, problems)
        has_caption = columns["caption"].is_valid().to_numpy(zero_copy_only=False)
        status = np.where(has_caption, Status.OK, Status.MISSING_CAPTION)
        report_statuses(part.shard.name, columns["key"], status, problems)
        count_duplicates(part.shard.name, columns["key"], problems)
        columns["status"] = pa.array(status.astype(np.int8))
        for name in ("image_offset", "image_size"):
            columns[name] = pa.nulls(table.num_rows, pa.int64())
        catalog = pa.table(columns).select(CATALOG_SCHEMA.names).cast(CATALOG_SCHEMA)
        counts = count_captions(columns, sources)
        return PartCatalog(table=catalog, problems=problems.counts, examples=problems.examples, captions=counts)

    def rows(self, part: Part) -> pa.Table:
        """Read all columns of the table for the rows of a part, in row order.

        Errors: `StoreError` if a column is damaged; the catalog may not have read that column."""
        if not _is_parquet(part.shard):
            return self._text(part.shard, Problems())
        try:
            with open_parquet(part.shard.uri) as file:
                return without_views(read_part(file, part, list(dict.fromkeys(file.schema_arrow.names))))
        except DamagedParquet as error:
            raise StoreError(f"{part.shard.uri} is not readable as Parquet ({error}); download it again") from error

    def key_column(self, shard: Shard, schema: pa.Schema) -> str | None:
        """Return the name of the key column of a shard; None if rows are numbered instead."""
        return self._sources(shard, schema).get("key")

    def fields(self, part: Part, keys: Sequence[str], names: Sequence[str]) -> pa.Table:
        """Read columns of a range of rows."""
        if _is_parquet(part.shard):
            return parquet_fields(part, names)
        if not keys:
            # the file may be empty or damaged
            return pa.table({name: pa.nulls(0, pa.int32()) for name in names})
        return table_fields(read_text_table(part.shard, self.config, Problems()), names)

    def reads(self, part: Part) -> Reads:
        """Return the bytes of the catalog's columns in Parquet, or of the whole text file."""
        if not _is_parquet(part.shard):
            return Reads(catalog=part.shard.num_bytes)
        if part.num_rows is None:
            return Reads(catalog=0)
        with open_parquet(part.shard.uri) as file:
            sources = self._sources(part.shard, file.schema_arrow)
            return Reads(catalog=sum(chunk_bytes(file, part, set(sources.values()))))

    def images(self, part: Part, rows: pa.Table) -> NoReturn:
        """Raise `TypeError`: a caption table has no images."""
        raise TypeError(f"{part.shard.name} is a caption table: it has no images")

    def _labels(self, part: Part, problems: Problems) -> tuple[pa.Table, dict[str, str]]:
        if not _is_parquet(part.shard):
            table = self._text(part.shard, problems)
            self._check(part.shard, table.schema)
            sources = self._sources(part.shard, table.schema)
            report_ignored(part.shard, table.schema, sources, problems)
            return table, sources
        with open_parquet(part.shard.uri) as file:
            if part.num_rows is None:
                raise DamagedParquet("its footer was damaged when the files were listed")
            sources = self._sources(part.shard, file.schema_arrow)
            report_ignored(part.shard, file.schema_arrow, sources, problems)
            return read_part(file, part, list(dict.fromkeys(sources.values()))), sources

    def _text(self, shard: Shard, problems: Problems) -> pa.Table:
        caption = self.config.caption_column
        names = CAPTION_NAMES if caption is None else (caption.lower(),)
        return read_text_table(shard, self.config, problems, text_names=names)

    def _sources(self, shard: Shard, schema: pa.Schema) -> dict[str, str]:
        return label_columns(schema, self._caption_column(shard, schema), self.config.key_column)

    def _check(self, shard: Shard, schema: pa.Schema) -> None:
        name = self._caption_column(shard, schema)
        check_captions(shard, type_of(schema, name), name)
        check_keys(shard, schema, self.config.key_column)

    def _caption_column(self, shard: Shard, schema: pa.Schema) -> str:
        try:
            return find_required(shard, schema, self.config.caption_column, CAPTION_NAMES, "source.caption_column")
        except ConfigError as error:
            if not is_delimited(shard.name) or self.config.columns is not None:
                raise
            raise ConfigError(f"{error}; if the first line is a row, name the columns with source.columns") from None


def _is_parquet(shard: Shard) -> bool:
    return shard.name.lower().endswith(PARQUET)


def _whole(shard: Shard) -> Part:
    return Part(index=0, shard=shard, first_row=0, num_rows=None)
