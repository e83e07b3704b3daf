"""A user's pairs: from a URI to shards and parts, from a part to catalog columns, from rows to image bytes.

Imports `config`, `storage` and `errors`; runs without Ray and torch."""

from __future__ import annotations

from orchestrator.config import DemoSource, ParquetSource, SourceConfig, TableSource, WebDatasetSource
from orchestrator.source.cache import Cached
from orchestrator.source.caption_table import CaptionTable
from orchestrator.source.parquet import ParquetImages
from orchestrator.source.schema import (
    CATALOG_SCHEMA,
    IMAGE_COLUMNS,
    PAIR_COLUMNS,
    Part,
    PartCatalog,
    Reads,
    Shard,
    Source,
    Status,
    has_image,
)
from orchestrator.source.webdataset import WebDataset
from orchestrator.storage.files import absolute

__all__ = [
    "CATALOG_SCHEMA",
    "IMAGE_COLUMNS",
    "PAIR_COLUMNS",
    "CaptionTable",
    "ParquetImages",
    "Part",
    "PartCatalog",
    "Reads",
    "Shard",
    "Source",
    "Status",
    "WebDataset",
    "has_image",
    "open_source",
    "with_cache",
]


def open_source(config: SourceConfig) -> Source:
    """The source that a configuration describes, its shards listed.

    Errors: `ConfigError`, one line, for a place without shards; `OSError` for one that cannot be listed."""
    match config:
        case WebDatasetSource():
            return WebDataset.open(config.uri)
        case ParquetSource():
            return ParquetImages.open(config)
        case TableSource():
            return CaptionTable.open(config)
        case DemoSource():
            raise TypeError("the demo pool is written as WebDataset shards first: open those")


def with_cache(source: Source, config: SourceConfig) -> Source:
    """The source as it is read many times: from copies on the node, where the configuration names a folder for them."""
    folder = config.cache if isinstance(config, (WebDatasetSource, ParquetSource)) else None
    return source if folder is None else Cached(source, absolute(folder))
