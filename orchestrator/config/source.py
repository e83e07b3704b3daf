"""The location and format of the pool, and how much of it may be broken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.section import Positive, Section, Share


class Limits(Section):
    """How much of a pool may be broken before the run fails."""

    max_broken_shards: Share = 0.01
    """The largest share of broken shards. One broken shard is always allowed, unless the value is 0. Unit: fraction of
    the shards."""
    max_broken_pairs: Share = 0.1
    """The largest share of broken pairs. Unit: fraction of the pairs."""
    max_captionless: Share = 0.5
    """The largest share of pairs without a caption, or with a blank one, if a selection step or a training phase reads
    captions. Unit: fraction of the pairs that can be used otherwise."""


class WebDatasetSource(Section):
    """Tar shards as img2dataset writes them: image, txt and json, and a Parquet file beside each tar."""

    format: Literal["webdataset"] = "webdataset"
    """Selects this format (`source=webdataset`)."""
    uri: str | tuple[str, ...] | None = None
    """The shards: a path or URI, braces (`{00000..00999}`), a glob, a folder, or a list of these."""
    cache: str | None = None
    """A folder on each node's local disk where training keeps copies of remote shards. Null: no copies."""
    caption_column: str | None = None
    """What holds the captions: the extension of a member, a key of the JSON members, or a column of the Parquet files
    beside the tars. Null: usual names, such as `txt`, `caption` and `text`."""
    limits: Limits = Limits()
    """How much of the pool may be broken."""


class ParquetSource(Section):
    """Parquet shards with the image bytes in a column (img2dataset's `parquet` output)."""

    format: Literal["parquet"] = "parquet"
    """Selects this format (`source=parquet`)."""
    uri: str | tuple[str, ...] | None = None
    """The shards: a path or URI, braces, a glob, a folder, or a list of these."""
    cache: str | None = None
    """A folder on each node's local disk where training keeps copies of remote shards. Null: no copies."""
    image_column: str | None = None
    """The column with the encoded image bytes, or a record of `bytes` and `path` as the `datasets` library writes it;
    `image.bytes` names a field of a record. Null: the first of the usual names, such as `jpg` and `image`."""
    caption_column: str | None = None
    """The column with the captions. Null: the first of the usual names, such as `caption` and `text`."""
    key_column: str | None = "key"
    """The column with the keys. Null, or `key` where no column has this name: a column with another usual name, such as
    `uid`, otherwise row numbers."""
    success_status: tuple[str, ...] | None = ("success", "ok", "true", "200")
    """The values of a column `status` that mark a pair with an image, in upper or lower case. Words that begin with
    `fail` mark one without; others are counted and named. Null: the column `status` has no meaning."""
    limits: Limits = Limits()
    """How much of the pool may be broken."""


class TableSource(Section):
    """A caption table without images (Parquet, CSV, TSV or JSON lines), to prune before downloading."""

    format: Literal["table"] = "table"
    """Selects this format (`source=table`)."""
    uri: str | tuple[str, ...] | None = None
    """The files: a path or URI, braces, a glob, a folder, or a list of these."""
    caption_column: str | None = None
    """The column with the captions. Null: the first of the usual names, such as `caption` and `text`."""
    key_column: str | None = None
    """The column with the keys. Null: a column with a usual name, such as `key`, otherwise row numbers."""
    columns: tuple[str, ...] | None = None
    """The names of the columns of CSV and TSV files without a header line. Null: the first line has the names."""
    quoting: Literal["auto", "minimal", "none"] = "auto"
    """The quotes in CSV and TSV files. `minimal`: a quote at the beginning of a field encloses it. `none`: quotes are
    text. `auto`: what fits the file; in TSV, quotes are text unless the file was written with quotes."""
    part_rows: Positive = 1_000_000
    """The most rows of a part. A larger file is split into several parts. Unit: rows."""
    limits: Limits = Limits()
    """How much of the pool may be broken."""


class DemoSource(Section):
    """The embedded pool, written into the store once as shards like LAION's."""

    format: Literal["demo"] = "demo"
    """Selects this format (`source=demo`)."""
    uri: None = None
    """Always null: the pool is part of the package."""
    pairs_per_shard: Positive = 1000
    """Size of the shards that are written. Unit: pairs."""
    limits: Limits = Limits()
    """How much of the pool may be broken."""


SourceConfig = Annotated[WebDatasetSource | ParquetSource | TableSource | DemoSource, Field(discriminator="format")]
