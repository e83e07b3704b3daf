"""Write a shard as img2dataset does: a tar, a Parquet file with metadata, and a JSON file with counts.

The bytes depend only on the rows: tar headers have no time and no owner, and there are no download times."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]
# hexadecimal digits of DataComp's uids
UID_CHARS = 32


def write_shard(folder: Path, shard: int, rows: list[Row]) -> None:
    """Write the three files of a shard.

    Args:
        folder: An existing folder.
        shard: The number of the shard, which gives the file names and the first five digits of each key.
        rows: Rows with `key`, `image` and `caption`. Other keys become additional columns, as in img2dataset."""
    metadata = [_metadata(row, key=f"{shard:05d}{position:04d}") for position, row in enumerate(rows)]
    with deterministic_tar(folder / f"{shard:05d}.tar") as tar:
        for row, record in zip(rows, metadata, strict=True):
            add_member(tar, f"{record['key']}.json", json.dumps(record, indent=4).encode())
            add_member(tar, f"{record['key']}.txt", row["caption"].encode())
            add_member(tar, f"{record['key']}.webp", row["image"])
    pq.write_table(pa.Table.from_pylist(metadata, schema=_schema(metadata[0])), folder / f"{shard:05d}.parquet")
    stats = {
        "count": len(rows),
        "successes": len(rows),
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "status_dict": {"success": len(rows)},
    }
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4))


def deterministic_tar(path: Path) -> tarfile.TarFile:
    """Open a tar for `add_member`, in the format that WebDataset writes."""
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to the tar. Owner, group and time are zero, which keeps the bytes deterministic."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o444
    tar.addfile(header, io.BytesIO(data))


def _metadata(row: Row, *, key: str) -> Row:
    with Image.open(io.BytesIO(row["image"])) as image:
        width, height = image.size
    additional = {name: value for name, value in row.items() if name not in ("key", "image", "caption")}
    return {
        "url": f"demo://{row['key']}",
        "caption": row["caption"],
        **additional,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": width,
        "height": height,
        "original_width": width,
        "original_height": height,
        # DataComp's form: 128 bits, different for every pair
        "uid": hashlib.sha256(row["key"].encode()).hexdigest()[:UID_CHARS],
        "sha256": hashlib.sha256(row["image"]).hexdigest(),
    }


def _schema(record: Row) -> pa.Schema:
    return pa.schema([(name, pa.int32() if isinstance(value, int) else pa.string()) for name, value in record.items()])
