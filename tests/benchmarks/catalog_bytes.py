"""Measure the catalog's bytes per pair of a LAION-shaped tar: uid, URL, caption, size and offset.

python tests/benchmarks/catalog_bytes.py

The captions are those of the embedded pool, in random order. The uids are hashes and the URLs are random letters, which
compress as badly as real ones."""

from __future__ import annotations

import hashlib
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import orchestrator
from orchestrator.data.catalog import to_parquet
from orchestrator.source import CATALOG_SCHEMA

ROWS, HOSTS = 10_000, 2_000
POOL = Path(orchestrator.__file__).parent / "demo" / "pool" / "train.parquet"
LETTERS = np.array(list(string.ascii_lowercase + string.digits))


def main() -> None:
    """Print the bytes per pair of the whole table and of each column alone."""
    table = made_up(np.random.default_rng(0))
    print(f"all columns: {len(to_parquet(table)) / ROWS:.1f} bytes per pair")
    for name in table.column_names:
        print(f"{name}: {len(to_parquet(table.select([name]))) / ROWS:.1f}")


def made_up(rng: np.random.Generator) -> pa.Table:
    """Return one part of a made-up catalog."""

    def word(length: int) -> str:
        return "".join(rng.choice(LETTERS, length))

    hosts = [f"{word(8)}.com" for _ in range(HOSTS)]
    urls = [f"https://{hosts[rng.zipf(1.3) % HOSTS]}/{word(6)}/{word(10)}/{word(14)}.jpg" for _ in range(ROWS)]
    sizes = rng.integers(5_000, 60_000, ROWS)
    columns = {
        "key": [f"{row:09d}" for row in range(ROWS)],
        "caption": pq.read_table(POOL, columns=["caption"])["caption"].take(
            rng.permutation(9_900)[np.arange(ROWS) % 9_900]
        ),
        "width": rng.integers(100, 1_200, ROWS),
        "height": rng.integers(100, 1_200, ROWS),
        "status": np.zeros(ROWS, np.int8),
        "image_offset": np.cumsum(sizes + 1_536),
        "image_size": sizes,
        "uid": [hashlib.sha256(url.encode()).hexdigest() for url in urls],
        "url": urls,
    }
    return pa.table({field.name: _column(columns[field.name], field.type) for field in CATALOG_SCHEMA})


def _column(values: object, kind: pa.DataType) -> pa.ChunkedArray:
    return (values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values)])).cast(kind)


if __name__ == "__main__":
    main()
