"""Shards, parts of shards, and the catalog of a part: a table with one row per pair.

The row of a pair is its position in the part's catalog: in a tar, the order in which the samples first appear; in a
table, the order of its rows. Every derived column (scores, embeddings, clusters) is stored in the same order, so no
join is needed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import ConfigError

logger = logging.getLogger(__name__)


class Status(IntEnum):
    """State of a pair, known without decoding its image. A pair with neither image nor caption is `MISSING_IMAGE`."""

    OK = 0
    MISSING_IMAGE = 1
    MISSING_CAPTION = 2
    BAD_IMAGE = 3


WITHOUT_IMAGE = (Status.MISSING_IMAGE, Status.BAD_IMAGE)
"""The statuses of pairs without a usable image."""

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.large_string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", pa.int8(), nullable=False),
        pa.field("image_offset", pa.int64()),
        pa.field("image_size", pa.int64()),
        pa.field("uid", pa.string()),
        pa.field("url", pa.string()),
    ]
)
"""Columns of a catalog. `image_offset` is the image's position in its shard: a byte offset in a tar, a row number in a
Parquet file. It is null in a compressed tar (which is read in sequence) and for pairs without an image. `image_size` is
in bytes, null if unknown."""

IMAGE_COLUMNS = ("key", "status", "image_offset", "image_size")
"""The catalog columns that `Source.images` needs."""

PAIR_COLUMNS = ("key", "caption", "status", "image_offset", "image_size")
"""The catalog columns that reading whole pairs needs."""


def has_image(status: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether the image of each pair can be used, bool [n], from the catalog column `status` [n]."""
    return pc.invert(pc.is_in(status, value_set=pa.array(WITHOUT_IMAGE, pa.int8())))


def has_caption(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each caption is there and not blank, bool [n], from the catalog column `caption` [n]."""
    return pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(captions, ""))), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of pairs. `version` changes when the file changes, or the Parquet file beside it (`sidecar_uri`)."""

    uri: str
    name: str
    num_bytes: int
    version: str
    sidecar_uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The unit of work: rows `first_row` to `first_row + num_rows` of a shard (None: all rows, not counted yet)."""

    index: int
    shard: Shard
    first_row: int
    num_rows: int | None


SEEN_NAMES = 50
"""How many names of members and keys a part counts for its pairs without a caption; each pair may have its own."""


@dataclass(slots=True)
class CaptionCounts:
    """Where a part's captions come from: pairs by the member, JSON key or column that holds the caption (`taken`), and
    what pairs without a caption have instead (`seen`)."""

    taken: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)

    def saw(self, extensions: Iterable[str], keys: Iterable[str]) -> None:
        """Count the members and the JSON keys of a pair without a caption."""
        names = [f".{extension}" for extension in extensions] + [f"JSON {key}" for key in keys]
        self.seen.update(name for name in names if name in self.seen or len(self.seen) < SEEN_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCatalog:
    """The catalog of a part.

    `table` has the columns of `CATALOG_SCHEMA`, `problems` counts them by kind, `examples` names a few, `broken` says
    that the whole shard is damaged, and `captions` says where the captions come from, as far as the source knows."""

    table: pa.Table
    problems: dict[str, int]
    examples: list[str]
    broken: bool = False
    captions: CaptionCounts = field(default_factory=CaptionCounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Bytes to read from a part.

    `catalog` is for its catalog, `images` for the images of all its pairs (None: the catalog has the size of each).
    `rows_per_read` is the number of pairs in the block that must be read to get one image."""

    catalog: int
    images: int | None = None
    rows_per_read: float = 1.0


class Source(Protocol):
    """A pool of pairs. Implementations are small and picklable; every call opens its own files."""

    @property
    def has_images(self) -> bool:
        """Whether pairs have images, which training needs."""

    def parts(self) -> list[Part]:
        """Return the parts, ordered by shard URI and then by row."""

    def catalog(self, part: Part) -> PartCatalog:
        """Read the catalog of a part. Damage is reported in the result. Errors: `OSError` if the read fails."""

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """Yield the encoded image of each given row of the part's catalog, in order; None for a row without an image.

        `rows` needs the columns `key`, `status`, `image_offset` and `image_size`, in ascending row order.
        Errors: `OSError` if the shard cannot be read or has changed since its catalog was made."""

    def fields(self, part: Part, keys: Sequence[str], names: Sequence[str]) -> pa.Table:
        """Return further metadata of the pairs with these keys, all rows of the part's catalog in their order.

        Each column holds positive whole numbers, int32; null where a pair has none. Errors: `OSError` if the shard
        cannot be read."""

    def reads(self, part: Part) -> Reads:
        """Return the bytes to read, from the listing or the file's footer. Errors: `OSError` if the read fails."""

    def identity(self) -> dict[str, Any]:
        """Return the settings and a digest of every shard's URI, size and version, for fingerprints."""


EXAMPLES_PER_KIND = 3


@dataclass(slots=True)
class Problems:
    """Counts of a part's problems by kind, with a few examples of each kind."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, example: str) -> None:
        """Count one problem."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= EXAMPLES_PER_KIND:
            self.examples.append(example)


class UnreadableText(ConfigError):
    """A text file that is empty or damaged, whatever the settings are."""

    def __init__(self, shard: Shard, reason: str) -> None:
        super().__init__(f"source.uri: {shard.uri} {reason}")
        self.reason = reason


def unreadable(part: Part, problems: Problems, reason: str) -> PartCatalog:
    """Return the catalog of a part with an unreadable shard: no rows."""
    logger.warning("unreadable shard %s: %s", part.shard.uri, reason)
    problems.add("unreadable_shard", f"{part.shard.name}: {reason}")
    return PartCatalog(
        table=CATALOG_SCHEMA.empty_table(), problems=problems.counts, examples=problems.examples, broken=True
    )
