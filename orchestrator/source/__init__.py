"""A user's pairs: from a URI to shards and parts, from a part to catalog columns, from rows to image bytes."""

from __future__ import annotations

from orchestrator.config import DemoSource, ParquetSource, SourceConfig, TableSource, WebDatasetSource
from orchestrator.source.cache import Cached
from orchestrator.source.parquet import ParquetImages
from orchestrator.source.schema import CATALOG_SCHEMA, Part, PartCatalog, Shard, Source, Status
from orchestrator.source.table import CaptionTable
from orchestrator.source.webdataset import WebDataset
from orchestrator.store import absolute

__all__ = [
    "CATALOG_SCHEMA",
    "CaptionTable",
    "ParquetImages",
    "Part",
    "PartCatalog",
    "Shard",
    "Source",
    "Status",
    "WebDataset",
    "open_source",
]


def open_source(config: SourceConfig) -> Source:
    """The source that a configuration describes, its shards listed.

    Errors: `ConfigError`, one line, for a place without shards; `OSError` for one that cannot be listed."""
    match config:
        case WebDatasetSource():
            return _with_cache(WebDataset.open(config.uri), config.cache)
        case ParquetSource():
            return _with_cache(ParquetImages.open(config), config.cache)
        case TableSource():
            return CaptionTable.open(config)
        case DemoSource():
            raise TypeError("the demo pool is written as WebDataset shards first: open those")


def _with_cache(source: Source, folder: str | None) -> Source:
    return source if folder is None else Cached(source, absolute(folder))
