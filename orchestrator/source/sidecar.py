"""Read captions and sizes from the Parquet file that img2dataset writes beside a tar.

The file also lists failed downloads, and its order differs from the tar's. Rows are therefore matched by key, and only
rows with status "success" count. `width` and `height` are those of the stored (resized) image."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.source.captions import caption_field, caption_text, plain_text
from orchestrator.storage.files import read

COLUMNS = ("key", "status", "width", "height", "uid", "sha256", "url")


@dataclass(slots=True)
class Labels:
    """Metadata of a pair. `problem` is the kind of what is wrong with the caption, if anything is."""

    caption: str | None = None
    width: int | None = None
    height: int | None = None
    uid: str | None = None
    url: str | None = None
    problem: str | None = None


@dataclass(slots=True)
class Sidecar:
    """Labels by key. `caption` is the name of the column with the captions, if it has one. `error` is the reason why
    the file cannot be read, if it cannot."""

    labels: dict[str, Labels] = field(default_factory=dict)
    caption: str | None = None
    error: str | None = None


def read_sidecar(uri: str, caption_column: str | None = None) -> Sidecar:
    """Read the successful rows of a sidecar; damage is reported in `error`. Errors: `OSError` if the read fails."""
    data = read(uri)
    # the bytes are in memory, so an OSError from here on means damage, not a failed read
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        caption = caption_field(file.schema_arrow.names, caption_column)
        columns = [name for name in dict.fromkeys((*COLUMNS, caption)) if name in file.schema_arrow.names]
        rows = file.read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return Sidecar(error=str(error))
    if "key" not in columns:
        return Sidecar(error="no column `key`")
    labels = {plain_text(row["key"]): labels_of(row, caption) for row in rows if _succeeded(row)}
    return Sidecar({key: found for key, found in labels.items() if key is not None}, caption)


def labels_of(fields: dict[str, Any], caption: str | None) -> Labels:
    """Return the labels in a sidecar row or JSON member (img2dataset's field names); unusable values become None.

    `caption` is the field with the caption."""
    uid = fields.get("uid") or fields.get("sha256")
    width, height = _whole(fields.get("width")), _whole(fields.get("height"))
    text, problem = caption_text(fields[caption]) if caption is not None else (None, None)
    return Labels(text, width, height, plain_text(uid), plain_text(fields.get("url")), problem)


def _succeeded(row: dict[str, Any]) -> bool:
    return row["key"] is not None and row.get("status", "success") == "success"


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else None
