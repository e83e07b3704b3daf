"""Read captions and sizes from the Parquet file that img2dataset writes beside a tar.

The file also lists failed downloads, and its order differs from the tar's. Rows are therefore matched by key, and only
rows with status "success" count. `width` and `height` are those of the stored (resized) image."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.storage.files import read

COLUMNS = ("key", "status", "caption", "width", "height", "uid", "sha256", "url")


@dataclass(slots=True)
class Labels:
    """Metadata of a pair."""

    caption: str | None = None
    width: int | None = None
    height: int | None = None
    uid: str | None = None
    url: str | None = None


@dataclass(slots=True)
class Sidecar:
    """Labels by key. `error` is the reason why the file cannot be read, if it cannot."""

    labels: dict[str, Labels] = field(default_factory=dict)
    error: str | None = None


def read_sidecar(uri: str) -> Sidecar:
    """Read the successful rows of a sidecar; damage is reported in `error`. Errors: `OSError` if the read fails."""
    data = read(uri)
    # the bytes are in memory, so an OSError from here on means damage, not a failed read
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        rows = file.read(columns=columns).to_pylist()
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        return Sidecar(error=str(error))
    if "key" not in columns:
        return Sidecar(error="no column `key`")
    return Sidecar({str(row["key"]): labels_of(row) for row in rows if _succeeded(row)})


def labels_of(fields: dict[str, Any]) -> Labels:
    """Return the labels in a sidecar row or JSON member (img2dataset's field names); unusable values become None."""
    uid = fields.get("uid") or fields.get("sha256")
    width, height = _whole(fields.get("width")), _whole(fields.get("height"))
    return Labels(_text(fields.get("caption")), width, height, _text(uid), _text(fields.get("url")))


def _succeeded(row: dict[str, Any]) -> bool:
    return row["key"] is not None and row.get("status", "success") == "success"


def _text(value: Any) -> str | None:
    # JSON can escape half of a surrogate pair, which UTF-8 cannot encode
    return None if value is None else str(value).encode(errors="replace").decode()


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else None
