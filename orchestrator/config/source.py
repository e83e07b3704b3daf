"""Where a run's pairs are, and how much of them may be broken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.section import Positive, Section, Share


class Limits(Section):
    """How much of a pool may be broken before a run stops. One shard may always be; 0 allows none at all."""

    max_broken_shards: Share = 0.01
    max_broken_pairs: Share = 0.1


class WebDatasetSource(Section):
    """Tar shards as img2dataset writes them (image + txt + json, and a Parquet file beside each tar).

    `cache`: a folder of each node's own disk in which training keeps copies of remote shards."""

    format: Literal["webdataset"] = "webdataset"
    uri: str | tuple[str, ...] | None = None
    cache: str | None = None
    limits: Limits = Limits()


class ParquetSource(Section):
    """Parquet shards with the image bytes in a column (img2dataset's `parquet` output); `cache` as of tars."""

    format: Literal["parquet"] = "parquet"
    uri: str | tuple[str, ...] | None = None
    cache: str | None = None
    image_column: str = "jpg"
    caption_column: str = "caption"
    key_column: str | None = "key"
    limits: Limits = Limits()


class TableSource(Section):
    """A caption table without images (Parquet, CSV, TSV, JSON lines): prune before downloading."""

    format: Literal["table"] = "table"
    uri: str | tuple[str, ...] | None = None
    caption_column: str = "caption"
    key_column: str | None = None
    part_rows: Positive = 1_000_000
    limits: Limits = Limits()


class DemoSource(Section):
    """The embedded pool, written once into the store as LAION-shaped shards."""

    format: Literal["demo"] = "demo"
    uri: None = None
    pairs_per_shard: Positive = 1000
    limits: Limits = Limits()


SourceConfig = Annotated[WebDatasetSource | ParquetSource | TableSource | DemoSource, Field(discriminator="format")]
