"""What a pair of a LAION-shaped tar takes in the catalog: uid, URL, caption, size, offset, as the catalog writes them.

python tests/benchmarks/catalog_bytes.py

Captions are the embedded pool's, in another order; uids are hashes and URLs made up of letters, as hard to compress."""

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
    """Prints the bytes a pair of the whole table, and of each column by itself."""
    table = made_up(np.random.default_rng(0))
    print(f"all columns: {len(to_parquet(table)) / ROWS:.1f} bytes a pair")
    for name in table.column_names:
        print(f"{name}: {len(to_parquet(table.select([name]))) / ROWS:.1f}")


def made_up(rng: np.random.Generator) -> pa.Table:
    """A part of a catalog."""

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
