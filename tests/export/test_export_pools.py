"""Exports of unusual pools and to unusual targets: changed sources, targets in use, damaged files, columns that differ
from file to file, keys that are not file names, malformed uids. No Ray: parts are made one by one."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.catalog import to_parquet
from orchestrator.data.keep_list import pack
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, Summary, sums, write_part
from orchestrator.engine.role import Role
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.errors import UserError, one_line
from orchestrator.export import export_keep_list
from orchestrator.source import open_source
from tests.support.pools import Pair, config_of, make_pairs, write_parquet_images, write_table, write_tars


def one_by_one(job: Any, missing: list[Any]) -> Iterator[Summary]:
    for index, item in missing:
        yield write_part(job.artifact, index, job.make_work()(item))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.engine.parts.PartsJob._run", one_by_one)


def selected(source: dict[str, Any], store: Path, *, leave: tuple[int, ...] = ()) -> RunRecord:
    """The record of a run that keeps all pairs except the rows `leave` of the first part."""
    config = config_of(source, store)
    pool = open_source(config.source)
    catalog = Artifact.of(config.store, "catalog", version=1, source=pool.identity())
    keep = Artifact.of(config.store, "keep", version=1, catalog=catalog, leave=leave)
    rows, kept = list[Summary](), list[Summary]()
    for part in pool.parts():
        table = pool.catalog(part).table
        mask = np.ones(table.num_rows, bool)
        if part.index == 0:
            mask[list(leave)] = False
        read = PartResult({"parquet": to_parquet(table)}, {"rows": table.num_rows})
        rows.append(write_part(catalog, part.index, read))
        kept.append(write_part(keep, part.index, pack(mask)))
    for artifact, summaries in ((catalog, rows), (keep, kept)):
        artifact.publish(totals=sums(summaries), parts=summaries, seconds=0)
    stages = [
        StageRecord(name=role, role=role, kind=one.kind, uri=one.uri, made_from=one.made_from, reused=False, seconds=0)
        for role, one in ((Role.CATALOG, catalog), (Role.POOL, keep))
    ]
    settings = config.model_dump(mode="json")
    return RunRecord(name="t", verb="select", config=settings, stages=stages, versions={}, started="", wall_seconds=0)


def tars(uri: str) -> dict[str, Any]:
    return {"format": "webdataset", "uri": uri}


def export(record: RunRecord, to: Path | str) -> None:
    export_keep_list(record, str(to), Display())


def exported(record: RunRecord, to: Path) -> pa.Table:
    export(record, to)
    return pq.read_table(to)


def refused(call: Callable[[], object], *texts: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for text in texts:
        assert text in one_line(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_back(folder: Path) -> list[tuple[str, str, bytes]]:
    """The (key, caption, image) of each pair in a folder of tars, read with our own source."""
    pool = open_source(config_of(tars(str(folder)), folder).source)
    found = []
    for part in pool.parts():
        catalog = pool.catalog(part)
        assert catalog.problems == {}
        images = pool.images(part, catalog.table)
        labels = zip(catalog.table["key"].to_pylist(), catalog.table["caption"].to_pylist(), images, strict=True)
        found += [(key, caption, image or b"") for key, caption, image in labels]
    return found


@pytest.mark.parametrize("name", ["kept.parquet", "kept.npy", "shards"])
def test_a_changed_source_is_an_error(name: str, tmp_path: Path) -> None:
    pairs = make_pairs(6)
    record = selected(tars(write_tars(tmp_path / "pool", pairs)), tmp_path / "store")
    write_tars(tmp_path / "pool", [pairs[1], pairs[0], *pairs[2:5]])
    refused(lambda: export(record, tmp_path / name), f"{tmp_path}/pool has changed since the run t was made")
    assert {path.name for path in tmp_path.iterdir()} == {"pool", "store"}


@pytest.mark.parametrize("to", ["pool", "pool/", "other/../pool", "link"])
def test_the_folder_of_the_pool_is_not_overwritten(to: str, tmp_path: Path) -> None:
    record = selected(tars(write_tars(tmp_path / "pool", make_pairs(6), num_shards=2)), tmp_path / "store")
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    before = contents(tmp_path / "pool")
    refused(lambda: export(record, f"{tmp_path}/{to}"), f"to={tmp_path}/{to}: got the folder of the source's own")
    assert contents(tmp_path / "pool") == before


def test_a_file_of_the_pool_is_not_overwritten(tmp_path: Path) -> None:
    record = selected({"format": "table", "uri": write_table(tmp_path / "table", ["a", "b"])}, tmp_path / "store")
    before = contents(tmp_path / "table")
    refused(lambda: export(record, tmp_path / "table" / "00000.parquet"), "one of the source's own files")
    assert contents(tmp_path / "table") == before


def test_an_export_does_not_mix_with_tars_of_another_keep_list(tmp_path: Path) -> None:
    source, to = tars(write_tars(tmp_path / "pool", make_pairs(6), num_shards=2)), tmp_path / "shards"
    one, other = (selected(source, tmp_path / "store", leave=leave) for leave in ((), (0,)))
    export(one, to)
    before = contents(to)
    refused(lambda: export(other, to), f"to={to}", "2: 00000.tar, 00001.tar", "empty the folder")
    assert contents(to) == before
    export(one, to)
    assert contents(to) == before, "an export may be repeated"
    shutil.copy(to / "00000.tar", to / "00002.tar")
    refused(lambda: export(one, to), "1: 00002.tar")


def test_an_export_does_not_mix_with_other_tars(tmp_path: Path) -> None:
    record = selected(tars(write_tars(tmp_path / "pool", make_pairs(3))), tmp_path / "store")
    write_tars(tmp_path / "shards", make_pairs(2), compressed=True)
    refused(lambda: export(record, tmp_path / "shards"), "00000.tar.gz")


def test_a_stopped_export_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, to = make_pairs(6), tmp_path / "shards"
    record = selected(tars(write_tars(tmp_path / "pool", pairs, num_shards=3)), tmp_path / "store")

    def stopped(job: Any, missing: list[Any]) -> Iterator[Summary]:
        yield from one_by_one(job, missing[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.engine.parts.PartsJob._run", stopped)
        with pytest.raises(KeyboardInterrupt):
            export(record, to)
    first = (to / "00000.tar").stat().st_mtime_ns
    export(record, to)
    assert (to / "00000.tar").stat().st_mtime_ns == first, "finished shards are not written again"
    assert [key for key, _, _ in read_back(to)] == [pair.key for pair in pairs]


def test_a_damaged_table_without_kept_pairs_is_not_read(tmp_path: Path) -> None:
    source = {"format": "table", "uri": write_table(tmp_path / "table", list("abcdef"), num_files=3)}
    for damaged, left in (("00000", "cdef"), ("00001", "ef")):
        (tmp_path / "table" / f"{damaged}.parquet").write_bytes(b"no Parquet" * 100)
        table = exported(selected(source, tmp_path / "store"), tmp_path / f"{damaged}.parquet")
        assert table.column_names == ["shard", "row", "key", "url", "caption"]
        assert table["caption"].to_pylist() == list(left)


def test_damaged_images_without_kept_pairs_are_not_read(tmp_path: Path) -> None:
    pairs = make_pairs(6)
    source = {"format": "parquet", "uri": write_parquet_images(tmp_path / "pool", pairs, num_shards=3)}
    (tmp_path / "pool" / "00001.parquet").write_bytes(b"no Parquet" * 100)
    export(selected(source, tmp_path / "store"), tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "00001.tar") as tar:
        assert tar.getnames() == []
    assert read_back(tmp_path / "shards") == [(one.key, one.caption, one.image) for one in (*pairs[:2], *pairs[4:])]


def test_a_column_that_only_the_export_reads_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"caption": ["a", "b"], "similarity": [0.25, 0.5]}), path)
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    first, size = column.dictionary_page_offset, column.total_compressed_size
    data[first : first + size] = b"\xff" * size
    path.write_bytes(data)
    record = selected({"format": "table", "uri": str(path)}, tmp_path / "store")
    refused(lambda: export(record, tmp_path / "kept.parquet"), f"{path} is not readable as Parquet")


def json_lines(folder: Path, *files: list[dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir()
    for number, rows in enumerate(files):
        (folder / f"{number}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"format": "table", "uri": str(folder)}


def test_columns_of_different_types_get_a_common_type(tmp_path: Path) -> None:
    rows: list[list[dict[str, Any]]] = [
        [{"caption": "a", "score": None, "size": 1, "of": {"x": 1}}, {"caption": "b", "score": None, "size": 2}],
        [{"caption": "c", "score": 0.25, "size": 0.5, "of": {"y": "z"}}],
        [{"caption": "d", "more": [1]}],
    ]
    table = exported(selected(json_lines(tmp_path / "table", *rows), tmp_path / "store"), tmp_path / "kept.parquet")
    assert table.column_names == ["shard", "row", "key", "caption", "score", "size", "of", "more"]
    assert [str(table.schema.field(name).type) for name in ("score", "size")] == ["double", "double"]
    assert table.drop(["shard", "row", "key"]).to_pylist() == [
        {"caption": "a", "score": None, "size": 1.0, "of": {"x": 1, "y": None}, "more": None},
        {"caption": "b", "score": None, "size": 2.0, "of": None, "more": None},
        {"caption": "c", "score": 0.25, "size": 0.5, "of": {"x": None, "y": "z"}, "more": None},
        {"caption": "d", "score": None, "size": None, "of": None, "more": [1]},
    ]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((1, "one"), ["1.jsonl", "'size' of large_string", "int64"]),
        ((2**53 + 1, 0.5), ["0.jsonl", "'size'", "double", str(2**53 + 1)]),
    ],
)
def test_columns_without_a_common_type_are_an_error(values: tuple[Any, Any], texts: list[str], tmp_path: Path) -> None:
    source = json_lines(tmp_path / "table", *([{"caption": "a", "size": value}] for value in values))
    record = selected(source, tmp_path / "store")
    for _ in range(2):
        refused(lambda: export(record, tmp_path / "kept.parquet"), "one type in all files", *texts)
    assert not (tmp_path / "kept.parquet").exists()


def test_the_key_column_of_a_table_is_handled_alike_in_all_files(tmp_path: Path) -> None:
    rows = [[{"caption": "a", "key": 7, "id": 7}], [{"caption": "b", "key": None, "id": 9}]]
    source = json_lines(tmp_path / "table", *rows)
    table = exported(selected(source, tmp_path / "store"), tmp_path / "kept.parquet")
    assert table.select(["key", "id"]).to_pylist() == [{"key": "7", "id": 7}, {"key": "0", "id": 9}]
    assert "source_key" not in table.column_names
    table = exported(selected({**source, "key_column": "id"}, tmp_path / "store"), tmp_path / "by_id.parquet")
    rows_by_id = table.select(["key", "source_key", "id"]).to_pylist()
    assert rows_by_id == [{"key": "7", "source_key": 7, "id": 7}, {"key": "9", "source_key": None, "id": 9}]


def test_keys_that_are_not_valid_member_names_can_be_read_again(tmp_path: Path) -> None:
    keys = [
        "000123.jpg",
        "000123.png",
        ".x",
        "x",
        "x",
        "x_4",
        "x",
        "a.b/c",
        "a/b.c",
        "../x",
        "",
        "n\0l",
        "n",
        "x.y\n/z",
    ]
    pairs = [Pair(key, pair.caption, pair.image) for key, pair in zip(keys, make_pairs(len(keys)), strict=True)]
    source = {"format": "parquet", "uri": write_parquet_images(tmp_path / "pool", pairs)}
    export(selected(source, tmp_path / "store"), tmp_path / "shards")
    found = read_back(tmp_path / "shards")
    assert [(caption, image) for _, caption, image in found] == [(pair.caption, pair.image) for pair in pairs]
    names = [name for name, _, _ in found]
    assert [names[index] for index in (3, 4, 5, 6, 7, 12)] == ["x", "x_4", "x_4_5", "x_6", "a.b/c", "n"]
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        samples = [json.loads(tar.extractfile(f"{name}.json").read()) for name in names]  # type: ignore[union-attr]
    assert [one["key"] for one in samples] == keys


@pytest.mark.parametrize("uid", ["", None, "1", "z" * 32, "0" * 14 + "_1" + "0" * 16, "0x" + "0" * 30, "0" * 32 + "\n"])
def test_a_malformed_uid_is_an_error(uid: str | None, tmp_path: Path) -> None:
    uids = ["0" * 31 + "A", uid]
    pq.write_table(pa.table({"caption": ["a", "b"], "uid": uids}), tmp_path / "table.parquet")
    record = selected({"format": "table", "uri": f"{tmp_path}/table.parquet"}, tmp_path / "store")
    refused(lambda: export(record, tmp_path / "kept.npy"), f"got uid {uid!r}", "32 hexadecimal digits")
