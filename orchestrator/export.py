"""The keep list for other tools: Parquet (with a table's own columns, ready for img2dataset), DataComp `.npy` uids, or
WebDataset shards of the kept pairs.

Parts are written by Ray tasks beside the target, so a killed export goes on; a single file is then put together from
them in order, one part at a time, in the driver's temporary folder: it takes the file's size of disk there (TMPDIR
names another place), for uids 16 bytes a pair, 32 GB for two billion. They are sorted there, too: the driver's own
memory does not grow with them."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from orchestrator import store
from orchestrator.artifacts import Artifact
from orchestrator.catalog import Catalog, to_parquet
from orchestrator.config import parse
from orchestrator.errors import UserError
from orchestrator.keeplist import KeepList
from orchestrator.parts import PartResult, Work, build_parts, part_path
from orchestrator.progress import Display
from orchestrator.record import RunRecord
from orchestrator.selection import final_keep_list, score_columns
from orchestrator.selection.wfpp import read_scores
from orchestrator.source import CaptionTable, Part, Source, open_source

VERSION = 1
UID_DTYPE = np.dtype("u8,u8")
UID_CHARS = 32
OWN_COLUMNS = ("shard", "row", "key")
MAGIC = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run's keep list with what reading its rows takes; `scores` by column name, each with the list that reached
    it."""

    source: Source
    catalog: Catalog
    keep: KeepList
    scores: dict[str, tuple[Artifact, KeepList]]
    full_names: bool

    @classmethod
    def of(cls, record: RunRecord) -> Kept:
        """Errors: `UserError` where the run made no keep list."""
        catalogs, keep = record.of_kind("catalog"), final_keep_list(record)
        if not catalogs or keep is None:
            raise UserError("this run has no keep list (it only evaluated a checkpoint); export a run or a select")
        source = open_source(parse(record.config).source)
        shards = [part.shard.name for part in source.parts()]
        return cls(
            source=source,
            catalog=Catalog(catalogs[0]),
            keep=KeepList(keep),
            scores=score_columns(record),
            full_names=shards != sorted(shards) or _repeats(source),
        )

    def table(self, part: Part) -> pa.Table:
        """The kept rows of a part: `shard`, `row`, `key`, the scores, and a caption table's own columns."""
        catalog = self.catalog.table(part.index, ("key",))
        mask = self.keep.mask(part.index, catalog.num_rows)
        rows = np.flatnonzero(mask)
        shard = part.shard.uri if self.full_names else part.shard.name
        columns: dict[str, Any] = {
            "shard": pa.array([shard] * len(rows), pa.string()),
            "row": pa.array(rows + part.first_row),
            "key": catalog["key"].take(rows),
        }
        for name, (scored, reached) in self.scores.items():
            values = np.full(catalog.num_rows, np.nan)
            values[reached.mask(part.index, catalog.num_rows)] = read_scores(scored, part.index)
            columns[name] = pa.array(values[rows])
        if isinstance(self.source, CaptionTable):
            own = self.source.rows(part).take(rows)
            columns |= {
                name if name not in columns else f"source_{name}": own[name]
                for name in own.column_names
                if name != "key" or not own["key"].cast(pa.string()).equals(columns["key"])
            }
        return pa.table(columns)


def _repeats(source: Source) -> bool:
    named = {(part.shard.name, part.shard.uri) for part in source.parts()}
    return len({name for name, _ in named}) < len(named)


def export_keep_list(record: RunRecord, to: str, display: Display) -> None:
    """Writes the run's keep list to `to`; the format follows its ending, a folder (no ending) means WebDataset shards.

    Errors: `UserError` for an ending that is no format, or a format that the source cannot give."""
    kept, name = Kept.of(record), to.rstrip("/").rsplit("/", 1)[1]
    ending = os.path.splitext(name)[1]
    if ending == ".parquet":
        _export_parquet(kept, to, display)
    elif ending == ".npy":
        _export_uids(kept, to, display)
    elif ending == "":
        _export_shards(kept, to, display)
    else:
        raise UserError(
            f"to={to}: got ending {ending!r}, expected .parquet, .npy (DataComp uids), or a folder for "
            "WebDataset shards"
        )
    display.line(f"{kept.keep.num_pairs:,} pairs exported to {to}")


def _parts(kept: Kept, folder: str, work: Any, display: Display) -> Artifact:
    made_from = Artifact.of(folder, "export", version=VERSION, keep=kept.keep.artifact)
    parts = kept.catalog.parts_of(kept.source)
    return build_parts(made_from, parts, work, display=display, name="export", count="kept")


def _export_parquet(kept: Kept, to: str, display: Display) -> None:
    beside = f"{to}.parts"
    parts = _parts(kept, beside, partial(_table_work, kept), display)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kept.parquet")
        with pq.ParquetWriter(path, _read_part(parts, 0).schema, compression="zstd") as writer:
            for index in range(len(parts.parts)):
                writer.write_table(_read_part(parts, index).cast(writer.schema))
        store.put_file(path, to)
    store.remove(beside)


def _read_part(parts: Artifact, index: int) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.read(part_path(parts, index, "parquet"))))


def _table_work(kept: Kept) -> Work:
    def work(part: Part) -> PartResult:
        table = kept.table(part)
        return PartResult({"parquet": to_parquet(table)}, {"kept": table.num_rows})

    return work


def _export_uids(kept: Kept, to: str, display: Display) -> None:
    beside = f"{to}.parts"
    parts = _parts(kept, beside, partial(_uid_work, kept), display)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kept.npy")
        uids = np.lib.format.open_memmap(path, mode="w+", dtype=UID_DTYPE, shape=(kept.keep.num_pairs,))
        start = 0
        for index, part in enumerate(parts.parts):
            uids[start : start + part["kept"]] = np.frombuffer(store.read(part_path(parts, index, "uids")), UID_DTYPE)
            start += part["kept"]
        # DataComp's tools look uids up by bisection
        uids.sort()
        uids.flush()
        store.put_file(path, to)
    store.remove(beside)


def _uid_work(kept: Kept) -> Work:
    def work(part: Part) -> PartResult:
        catalog = kept.catalog.table(part.index, ("uid",))
        uids = catalog["uid"].take(np.flatnonzero(kept.keep.mask(part.index, catalog.num_rows))).to_pylist()
        wrong = next((uid for uid in uids if uid is None or len(uid) != UID_CHARS), "")
        if wrong != "":
            raise UserError(
                f"{part.shard.name}: got uid {wrong!r}, expected DataComp's {UID_CHARS} hexadecimal digits "
                "for every pair; export to .parquet instead"
            )
        halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids]
        return PartResult({"uids": np.array(halves, UID_DTYPE).tobytes()}, {"kept": len(uids)})

    return work


def _export_shards(kept: Kept, to: str, display: Display) -> None:
    if not kept.source.has_images:
        raise UserError(
            f"to={to}: a caption table has no images to write shards of; export to .parquet and download "
            "the kept pairs with img2dataset"
        )
    _parts(kept, store.join(to, "_export"), partial(_shard_work, kept, to), display)
    store.remove(store.join(to, "_export"))


def _shard_work(kept: Kept, to: str) -> Work:
    def work(part: Part) -> PartResult:
        columns = ("key", "caption", "width", "height", "status", "image_offset", "image_size", "uid", "url")
        catalog = kept.catalog.table(part.index, columns)
        rows = catalog.take(np.flatnonzero(kept.keep.mask(part.index, catalog.num_rows)))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for pair, image in zip(rows.to_pylist(), kept.source.images(part, rows), strict=True):
                _add_sample(tar, pair, image)
        store.write(store.join(to, f"{part.index:05d}.tar"), buffer.getvalue())
        return PartResult({}, {"kept": rows.num_rows})

    return work


def _inside(key: str) -> str:
    # whoever unpacks the shard must not be led out of the folder; its json has the key as it is
    return xxhash.xxh3_64_hexdigest(key.encode()) if {"", ".", ".."} & set(key.split("/")) else key


def _add_sample(tar: tarfile.TarFile, pair: dict[str, Any], image: bytes | None) -> None:
    told = {name: pair[name] for name in ("key", "caption", "width", "height", "uid", "url")}
    members = {"txt": (pair["caption"] or "").encode(), "json": json.dumps(told).encode()}
    if image is not None:
        members = {MAGIC.get(image[:2], "jpg"): image, **members}
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{_inside(pair['key'])}.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
