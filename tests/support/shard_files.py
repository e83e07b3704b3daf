"""Write real shards for tests: images with Pillow, tars with tarfile, sidecars with pyarrow."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.source.schema import Part, Source

Entry = tuple[str, bytes]


def picture(seed: int, *, width: int = 40, height: int = 30, kind: str = "JPEG") -> bytes:
    """Return an encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def pair(key: str, seed: int, *, extension: str = "jpg", with_json: bool = True) -> list[Entry]:
    """Return the members of a pair as img2dataset writes them. The image is 40 + seed pixels wide."""
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension]
    entries = [(f"{key}.{extension}", picture(seed, width=40 + seed, kind=kind)), (f"{key}.txt", f"a {key}".encode())]
    fields = {"caption": f"a {key}", "width": 40 + seed, "height": 30, "uid": f"uid{key}", "url": f"http://x/{key}"}
    return entries + ([(f"{key}.json", json.dumps(fields).encode())] if with_json else [])


def pairs(num_pairs: int, **options: object) -> list[Entry]:
    """Return the members of several pairs with keys 0000, 0001, ..."""
    return [entry for i in range(num_pairs) for entry in pair(f"{i:04d}", i, **options)]  # type: ignore[arg-type]


def write_tar(path: Path, entries: Iterable[Entry], mode: str = "w") -> Path:
    """Write the entries in order into a tar. Mode "w:gz" compresses it."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_sidecar(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the Parquet file that img2dataset puts beside a tar."""
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def all_images(source: Source, part: Part, rows: list[int] | None = None) -> list[bytes | None]:
    """Return the images of the given rows of a part; by default of all rows."""
    table = source.catalog(part).table
    return list(source.images(part, table if rows is None else table.take(pa.array(rows, pa.int64()))))
