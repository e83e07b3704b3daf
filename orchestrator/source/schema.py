"""What a source is made of: shards, parts of shards, and the catalog columns of a part (one row per pair).

The row of a pair is its position in the part's catalog: for a tar the order in which its samples first appear, for a
table the order of its rows. Every derived column is stored in this order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc


class Status(IntEnum):
    """What is known of a pair without decoding its image. A pair with neither image nor caption is `MISSING_IMAGE`."""

    OK = 0
    MISSING_IMAGE = 1
    MISSING_CAPTION = 2
    BAD_IMAGE = 3


WITHOUT_IMAGE = (Status.MISSING_IMAGE, Status.BAD_IMAGE)
"""The statuses of pairs whose image cannot be used."""

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
"""`image_offset` is where the image lies in its shard: a byte offset in a tar, a row in a Parquet file; null in a
compressed tar (which is read in sequence) and where there is no image. `image_size` is in bytes, null if unknown."""

IMAGE_COLUMNS = ("key", "status", "image_offset", "image_size")
"""The catalog columns that `Source.images` needs."""

PAIR_COLUMNS = ("key", "caption", "status", "image_offset", "image_size")
"""The catalog columns that reading whole pairs needs."""


def has_image(status: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether the image of each pair can be used, bool [n], from the catalog column `status` [n]."""
    return pc.invert(pc.is_in(status, value_set=pa.array(WITHOUT_IMAGE, pa.int8())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of pairs. `version` changes when the file, or the Parquet file beside it, does."""

    uri: str
    name: str
    num_bytes: int
    version: str
    sidecar_uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The unit of work: rows `first_row` to `first_row + num_rows` of a shard (`None`: all, unknown until read)."""

    index: int
    shard: Shard
    first_row: int
    num_rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCatalog:
    """The catalog of a part (`CATALOG_SCHEMA`), what was wrong by kind, a few of them named, and whether the shard
    as a whole is damaged."""

    table: pa.Table
    problems: dict[str, int]
    examples: list[str]
    broken: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What is read of a part, in bytes: for its `catalog`, and for `images` where all of its pairs are wanted (None:
    the catalog knows the size of each). `rows_per_read`: how many pairs lie in what is read for the image of one."""

    catalog: int
    images: int | None = None
    rows_per_read: float = 1.0


class Source(Protocol):
    """A pool of pairs. Implementations are small picklable values; every call opens its own files."""

    @property
    def has_images(self) -> bool:
        """Whether there is anything to train on."""

    def parts(self) -> list[Part]:
        """The parts in order: by shard URI, then by row."""

    def catalog(self, part: Part) -> PartCatalog:
        """The catalog of a part. Errors: `OSError` if it cannot be read; damage is reported, not raised."""

    def images(self, part: Part, rows: pa.Table) -> Iterator[bytes | None]:
        """The encoded image of each given row of the part's catalog, in the same order; `None` where there is none.

        `rows` needs the columns `key`, `status`, `image_offset` and `image_size`, in ascending row order.
        Errors: `OSError` when the shard cannot be read, or is no longer what was catalogued."""

    def reads(self, part: Part) -> Reads:
        """What is read of a part, by the listing or its footer. Errors: `OSError` if that cannot be read."""

    def identity(self) -> dict[str, Any]:
        """What makes the pool what it is: settings, and a digest of every shard's URI, size and version."""


EXAMPLES_PER_KIND = 3


@dataclass(slots=True)
class Problems:
    """Counts what is wrong with a part by kind, and keeps a few examples of each kind."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, example: str) -> None:
        """Counts one more of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= EXAMPLES_PER_KIND:
            self.examples.append(example)


def unreadable(part: Part, problems: Problems, reason: str) -> PartCatalog:
    """The catalog of a part whose shard cannot be made sense of: no rows."""
    problems.add("unreadable_shard", f"{part.shard.name}: {reason}")
    return PartCatalog(
        table=CATALOG_SCHEMA.empty_table(), problems=problems.counts, examples=problems.examples, broken=True
    )
