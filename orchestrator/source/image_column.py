"""The column of a Parquet file that holds the encoded images: bytes, or a field of a record with bytes.

The `datasets` library writes a record of `bytes` and `path` for each image. A record without bytes has no image: its
path leads to a file on the machine that wrote it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.config import ConfigError
from orchestrator.source.columns import find_required
from orchestrator.source.plain_values import is_bytes
from orchestrator.source.schema import Shard

IMAGE_NAMES = ("jpg", "image", "img", "png", "jpeg", "webp", "image_bytes", "bytes")
FIELD = "bytes"
SETTING = "source.image_column"


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """A column of image bytes: its name, and the name of the field if it is one of records."""

    name: str
    field: str | None

    @classmethod
    def find(cls, shard: Shard, schema: pa.Schema, configured: str | None) -> ImageColumn:
        """Return the configured column (`NAME`, or `NAME.FIELD` of records), or the first with a usual name.

        Errors: `ConfigError` if it is missing or holds no bytes."""
        name, field = configured, None
        if configured is not None and configured not in schema.names and "." in configured:
            name, field = configured.split(".", 1)
        name = find_required(shard, schema, name, IMAGE_NAMES, SETTING)
        kind = schema.field(name).type
        if pa.types.is_struct(kind):
            field = field or FIELD
            place = kind.get_field_index(field)
            if place >= 0 and is_bytes(kind.field(place).type):
                return cls(name, field)
        elif field is None and is_bytes(kind):
            return cls(name, None)
        raise ConfigError(
            f"{SETTING}: column {name!r} of {shard.name} is {kind}; expected binary (the encoded image), or a record "
            f"with such a field{'' if field in (None, FIELD) else f' {field!r}'}"
        )

    @property
    def path(self) -> str:
        """Return the path of the bytes in the file's schema."""
        return self.name if self.field is None else f"{self.name}.{self.field}"

    def read(self, file: pq.ParquetFile, group: int) -> pa.ChunkedArray:
        """Return the images of a row group, null where a row has none."""
        column = file.read_row_group(group, columns=[self.path])[self.name]
        return column if self.field is None else pc.struct_field(column, self.field)

    def has_all(self, file: pq.ParquetFile, group: int) -> bool:
        """Return whether the footer guarantees that every row of a row group has an image."""
        chunks = file.metadata.row_group(group)
        of_path = (chunks.column(place) for place in range(chunks.num_columns))
        known = next((chunk.statistics for chunk in of_path if chunk.path_in_schema == self.path), None)
        return known is not None and known.has_null_count and known.null_count == 0
