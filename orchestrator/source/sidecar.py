"""Captions and sizes from the Parquet file that img2dataset writes beside a tar.

It lists failed downloads too and its order is not the tar's, so its rows are matched by key where status is success.
Its `width` and `height` are those of the stored (resized) image."""

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
    """What is said of a pair besides its image."""

    caption: str | None = None
    width: int | None = None
    height: int | None = None
    uid: str | None = None
    url: str | None = None


@dataclass(slots=True)
class Sidecar:
    """Labels by key. `error`: why the file could not be made sense of, if so."""

    labels: dict[str, Labels] = field(default_factory=dict)
    error: str | None = None


def read_sidecar(uri: str) -> Sidecar:
    """The successful rows of a sidecar by key; damage is reported in `error`. Errors: `OSError` from reading."""
    data = read(uri)
    # the bytes are in memory: an OSError from here on is damage, not a failed read
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
    """Labels from the fields of a sidecar row or a JSON member (img2dataset's names); what is unusable is `None`."""
    uid = fields.get("uid") or fields.get("sha256")
    width, height = _whole(fields.get("width")), _whole(fields.get("height"))
    return Labels(_text(fields.get("caption")), width, height, _text(uid), _text(fields.get("url")))


def _succeeded(row: dict[str, Any]) -> bool:
    return row["key"] is not None and row.get("status", "success") == "success"


def _text(value: Any) -> str | None:
    # JSON can escape half of a surrogate pair, which is no character
    return None if value is None else str(value).encode(errors="replace").decode()


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else None
