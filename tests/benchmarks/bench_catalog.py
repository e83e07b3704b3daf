"""Catalogs of a million pairs, read by this code and by another version of it, in turn.

    python tests/benchmarks/bench_catalog.py --other CLONE_OF_ANOTHER_VERSION

The pool has shards in the layout of img2dataset, made of the embedded pool, and the same rows as Parquet and as TSV.
The files are hard links to one file of each kind. Each reading runs in a process of its own; its CPU seconds count."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.demo.img2dataset import write_shard
from orchestrator.demo.shards import POOL_PATH

PAIRS_PER_FILE = 10_000
# runs in both versions, so it uses only names that both have
READ = """
import json, sys, time
from orchestrator.config import TableSource, WebDatasetSource
from orchestrator.source import open_source
results = {}
for kind, uri in json.loads(sys.argv[1]).items():
    source = open_source(WebDatasetSource(uri=uri) if kind == "tars" else TableSource(uri=uri))
    start = time.process_time()
    parts = source.parts()
    catalogs = [source.catalog(part) for part in parts]
    pairs = sum(catalog.table.num_rows for catalog in catalogs)
    results[kind] = (time.process_time() - start, pairs)
print(json.dumps(results))
"""


def main() -> None:
    """Make the pool, read it in turn with both versions, and print the seconds and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--other", type=Path, required=True, help="a clone of the version to compare with")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    here = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        uris = write_pool(Path(folder), arguments.pairs // PAIRS_PER_FILE)
        seconds: dict[str, dict[str, list[float]]] = {kind: {"here": [], "other": []} for kind in uris}
        for _ in range(arguments.rounds):
            for version, tree in (("here", here), ("other", arguments.other)):
                for kind, (taken, pairs) in read(tree, uris).items():
                    assert pairs == arguments.pairs // PAIRS_PER_FILE * PAIRS_PER_FILE, (kind, pairs)
                    seconds[kind][version].append(taken)
    for kind, each in seconds.items():
        best = {version: min(values) for version, values in each.items()}
        print(
            f"{kind:8} here {best['here']:7.2f} s, other {best['other']:7.2f} s, "
            f"other / here {best['other'] / best['here']:.2f}",
            flush=True,
        )


def write_pool(folder: Path, num_files: int) -> dict[str, str]:
    """Write one file of each kind and its hard links; return the URI of each kind."""
    rows = pq.read_table(POOL_PATH / "train.parquet").to_pylist()
    rows = (rows * -(-PAIRS_PER_FILE // len(rows)))[:PAIRS_PER_FILE]
    tars = folder / "tars"
    tars.mkdir()
    write_shard(tars, 0, rows)
    table = pq.read_table(tars / "00000.parquet")
    links(tars, ("tar", "parquet"), num_files)
    for kind in ("parquet", "tsv"):
        (folder / kind).mkdir()
        path = folder / kind / f"00000.{kind}"
        if kind == "parquet":
            pq.write_table(table.select(["url", "caption", "width", "height"]), path)
        else:
            write_tsv(table, path)
        links(folder / kind, (kind,), num_files)
    return {kind: str(folder / kind) for kind in ("tars", "parquet", "tsv")}


def write_tsv(table: pa.Table, path: Path) -> None:
    """Write url and caption without quotes, as img2dataset's lists are."""
    lines = zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)
    text = "".join(f"{url}\t{' '.join(caption.split())}\n" for url, caption in lines)
    path.write_text("url\tcaption\n" + text, encoding="utf-8")


def links(folder: Path, endings: tuple[str, ...], num_files: int) -> None:
    """Link the first file of each ending under the other numbers."""
    for number in range(1, num_files):
        for ending in endings:
            os.link(folder / f"00000.{ending}", folder / f"{number:05d}.{ending}")


def read(tree: Path, uris: dict[str, str]) -> dict[str, tuple[float, int]]:
    """Read all pools with the code in `tree`; return (CPU seconds, pairs) of each kind."""
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(uris)], cwd=tree, env=env, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
