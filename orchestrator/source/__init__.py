"""Read a user's image-text pairs: from a URI to shards and parts, from a part to catalog columns, from rows to bytes.

One module per format (`webdataset`, `parquet`, `caption_table`); each implements the `Source` protocol of `schema`.
May import `errors`, `storage` and `config`; never Ray or torch."""

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
    has_caption,
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
    "has_caption",
    "has_image",
    "open_source",
    "with_cache",
]


def open_source(config: SourceConfig) -> Source:
    """Open the configured source and list its shards.

    Errors: `ConfigError` (one line) if the URI has no shards; `OSError` if it cannot be listed."""
    match config:
        case WebDatasetSource():
            return WebDataset.open(config.uri, config.caption_column)
        case ParquetSource():
            return ParquetImages.open(config)
        case TableSource():
            return CaptionTable.open(config)
        case DemoSource():
            raise TypeError(
                "the demo source has no shards: write the demo pool as WebDataset shards first and open those"
            )


def with_cache(source: Source, config: SourceConfig) -> Source:
    """Wrap the source to read images from copies on the node's disk, if `source.cache` names a folder for them."""
    folder = config.cache if isinstance(config, (WebDatasetSource, ParquetSource)) else None
    return source if folder is None else Cached(source, absolute(folder))
