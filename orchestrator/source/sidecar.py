"""Read captions and sizes from the Parquet file that img2dataset writes beside a tar.

The file also lists failed downloads, and its order differs from the tar's. Rows are therefore matched by key, and only
rows with status "success" count. `width` and `height` are those of the stored (resized) image."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.source.captions import caption_field, caption_text, plain_text
from orchestrator.storage.files import read

COLUMNS = ("width", "height", "uid", "sha256", "url")
# the bytes are in memory when these are caught, so an OSError means damage, not a failed read
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
Row = dict[str, Any]


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
    """Labels by key. `caption` is the name of the column with the captions, if it has one. `repeated`: keys of rows
    after the first one with that key, which are not used. `error` is the reason why the file cannot be read, if it
    cannot."""

    labels: dict[str, Labels] = field(default_factory=dict)
    caption: str | None = None
    repeated: tuple[str, ...] = ()
    error: str | None = None


def read_sidecar(uri: str, caption_column: str | None = None) -> Sidecar:
    """Read the successful rows of a sidecar; damage is reported in `error`. Errors: `OSError` if the read fails."""
    data = read(uri)
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        caption = caption_field(file.schema_arrow.names, caption_column)
        if "key" not in file.schema_arrow.names:
            return Sidecar(error="no column `key`")
        rows, repeated = _rows(file, (*COLUMNS, caption))
    except DAMAGE as error:
        return Sidecar(error=str(error))
    return Sidecar({key: labels_of(row, caption) for key, row in rows.items()}, caption, repeated)


def sidecar_fields(uri: str, names: Sequence[str]) -> dict[str, Row]:
    """Return columns of the successful rows of a sidecar, by key; nothing if it is damaged, which the catalog counts.

    Errors: `OSError` if the read fails."""
    data = read(uri)
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        return _rows(file, names)[0] if "key" in file.schema_arrow.names else {}
    except DAMAGE:
        return {}


def _rows(file: pq.ParquetFile, names: Iterable[str | None]) -> tuple[dict[str, Row], tuple[str, ...]]:
    columns = [name for name in dict.fromkeys(("key", "status", *names)) if name in file.schema_arrow.names]
    rows: dict[str, Row] = {}
    repeated = []
    for row in file.read(columns=columns).to_pylist():
        key = plain_text(row["key"]) if _succeeded(row) else None
        if key in rows:
            repeated.append(key)
        elif key is not None:
            rows[key] = row
    return rows, tuple(repeated)


def labels_of(fields: Row, caption: str | None) -> Labels:
    """Return the labels in a sidecar row or JSON member (img2dataset's field names); unusable values become None.

    `caption` is the field with the caption."""
    uid = fields.get("uid") or fields.get("sha256")
    width, height = whole(fields.get("width")), whole(fields.get("height"))
    text, problem = caption_text(fields[caption]) if caption is not None else (None, None)
    return Labels(text, width, height, plain_text(uid), plain_text(fields.get("url")), problem)


def _succeeded(row: Row) -> bool:
    return row["key"] is not None and row.get("status", "success") == "success"


def whole(value: Any) -> int | None:
    """Return a number of at least 1 as a whole number that fits 32 bits; None for everything else."""
    return int(value) if isinstance(value, int | float) and 1 <= value < 2**31 else None
