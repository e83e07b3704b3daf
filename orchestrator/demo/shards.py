"""Write the demo pool as shards in the layout of img2dataset, so that the demo uses the same code as LAION-shaped data.

The layout is that of github.com/rom1504/img2dataset, webdataset output with the columns `sha256` and, as
in DataComp, `uid`:

    FOLDER/train/00000.tar          000000000.json .txt .webp, 000000001.json ...: 5 digits of the shard, 4 of the pair
    FOLDER/train/00000.parquet      one row per pair: url, caption, key, status, sizes, uid, sha256
    FOLDER/train/00000_stats.json   counts
    FOLDER/retrieval/...            the same for the pairs of the retrieval set
    FOLDER/zero_shot/00000.tar      000000000.cls (class index) and 000000000.webp
    FOLDER/zero_shot/00000.classnames.txt, 00000.templates.txt   one class name or template per line
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from orchestrator.demo.img2dataset import Row, add_member, deterministic_tar, write_shard

POOL_PATH = Path(__file__).parent / "pool"
MAX_PAIRS_PER_SHARD = 10_000
TEMPLATES = ("{c}",)
"""The class name alone, like the captions of the pool. No caption contains `a photo of`."""


@dataclass(frozen=True)
class DemoPool:
    """URIs of the three sets, each a tar or a brace pattern of tars."""

    train_uri: str
    retrieval_uri: str
    zero_shot_uri: str


def write_shards(folder: str | os.PathLike[str], *, pairs_per_shard: int = 1000) -> DemoPool:
    """Write the pool into the local `folder`, unless it is already there. The bytes depend only on the pool.

    A temporary folder beside `folder` is filled and then renamed, so all files appear at once. A killed call leaves
    nothing in `folder`. If two calls run at the same time, one of them wins.

    Raises:
        ValueError: `pairs_per_shard` is outside 1..10,000, or the folder holds other files, for example shards of
            another size."""
    if not 1 <= pairs_per_shard <= MAX_PAIRS_PER_SHARD:
        raise ValueError(f"pairs_per_shard must be 1 to {MAX_PAIRS_PER_SHARD}, got {pairs_per_shard}")
    target = Path(folder)
    num_pairs = pq.read_metadata(POOL_PATH / "train.parquet").num_rows
    pairs_per_shard = min(pairs_per_shard, num_pairs)
    num_shards = -(-num_pairs // pairs_per_shard)
    if not (target.is_dir() and any(target.iterdir())):
        _write_whole(target, pairs_per_shard)
    _check_complete(target, num_shards, pairs_per_shard)
    return DemoPool(
        train_uri=f"{target}/train/{{00000..{num_shards - 1:05d}}}.tar",
        retrieval_uri=f"{target}/retrieval/00000.tar",
        zero_shot_uri=f"{target}/zero_shot/00000.tar",
    )


def _write_whole(target: Path, pairs_per_shard: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_pairs(POOL_PATH / "train.parquet", temporary / "train", pairs_per_shard)
        _write_pairs(POOL_PATH / "heldout.parquet", temporary / "retrieval", MAX_PAIRS_PER_SHARD)
        _write_zero_shot(temporary / "zero_shot")
        temporary.chmod(0o755)
        # rename replaces an empty folder, but not a folder that another call has filled in the meantime
        temporary.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_pairs(source: Path, folder: Path, pairs_per_shard: int) -> None:
    folder.mkdir()
    rows = pq.read_table(source).to_pylist()
    for shard, start in enumerate(range(0, len(rows), pairs_per_shard)):
        write_shard(folder, shard, rows[start : start + pairs_per_shard])


def _write_zero_shot(folder: Path) -> None:
    folder.mkdir()
    rows: list[Row] = pq.read_table(POOL_PATH / "zero_shot.parquet").to_pylist()
    with deterministic_tar(folder / "00000.tar") as tar:
        for position, row in enumerate(rows):
            add_member(tar, f"{position:09d}.cls", str(row["class_index"]).encode())
            add_member(tar, f"{position:09d}.webp", row["image"])
    names = {row["class_index"]: row["class_name"] for row in rows}
    _write_lines(folder / "00000.classnames.txt", [names[index] for index in range(len(names))])
    _write_lines(folder / "00000.templates.txt", TEMPLATES)


def _write_lines(path: Path, lines: list[str] | tuple[str, ...]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _check_complete(target: Path, num_shards: int, pairs_per_shard: int) -> None:
    stats_path = target / "train" / "00000_stats.json"
    present = len(list((target / "train").glob("*.tar")))
    if not stats_path.is_file() or present != num_shards or _count(stats_path) != pairs_per_shard:
        raise ValueError(
            f"{target} does not hold the demo's {num_shards} shards of {pairs_per_shard} pairs: "
            "choose another folder, or delete this one"
        )


def _count(stats_path: Path) -> int:
    return json.loads(stats_path.read_text())["count"]
