"""The join with a list, compared with a dictionary: thousands of rows with duplicates, gaps and misses on both sides,
for several partitionings, and resumed after a lost part."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data import external_list, join
from orchestrator.data.catalog import Catalog, part_rows
from orchestrator.data.external_list import ExternalList
from orchestrator.data.join import Joined, join_stages
from orchestrator.engine.console import Display
from orchestrator.errors import UserError
from orchestrator.export import UID_DTYPE
from orchestrator.source import Status
from tests.support.pools import write_catalog

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_PAIRS = 4000
Position = tuple[int, int]


def made_pool() -> list[dict[str, Any]]:
    """Pairs with shared, empty and missing URLs, broken images and keys beyond ASCII."""
    draw = random.Random(0)
    urls: list[str | None] = [f"http://bücher.example/{draw.randrange(3000)}?猫" for _ in range(NUM_PAIRS)]
    for row in range(0, NUM_PAIRS, 97):
        urls[row] = "" if row % 2 else None
    statuses = [Status.BAD_IMAGE if row % 31 == 0 else Status.OK for row in range(NUM_PAIRS)]
    return [
        {"key": f"schlüssel-{row}", "url": url, "status": status, "uid": f"{row * 0x9E3779B97F4A7C15 % 2**128:032x}"}
        for row, (url, status) in enumerate(zip(urls, statuses, strict=True))
    ]


def made_list() -> list[list[str | None]]:
    """Three files of URLs in another order, with duplicates in and between files, gaps, and URLs of other pools."""
    draw = random.Random(1)
    urls: list[str | None] = [f"http://bücher.example/{draw.randrange(4000)}?猫" for _ in range(5000)]
    for row in range(0, 5000, 83):
        urls[row] = None if row % 2 else ""
    return [urls[:1700], urls[1700:1701], urls[1701:]]


@dataclass
class Expected:
    """The result of a join with a dictionary."""

    matches: list[Position | None]
    counts: dict[str, int]
    pool_examples: list[str]
    list_examples: list[str]


def oracle(pool: Sequence[tuple[str | None, bool]], files: Sequence[Sequence[str | None]]) -> Expected:
    first: dict[str, Position] = {}
    duplicates = 0
    for file, values in enumerate(files):
        for row, value in enumerate(values):
            if not value:
                continue
            if value in first:
                duplicates += 1
            first.setdefault(value, (file, row))
    matches = [first.get(value) if value else None for value, _ in pool]
    there = [value for value, _ in pool if value]
    left = {value for value in first if value not in set(there)}
    counts = {
        "pool_rows": len(pool),
        "pool_empty": len(pool) - len(there),
        "pool_unmatched": sum(value not in first for value in there),
        "duplicate_pool": len(there) - len(set(there)),
        "usable": sum(usable for _, usable in pool),
        "usable_unmatched": sum(usable and value not in first for value, usable in pool),
        "list_rows": sum(map(len, files)),
        "list_empty": sum(not value for values in files for value in values),
        "list_unmatched": len(left),
        "duplicate_list": duplicates,
        "matched": sum(match is not None for match in matches),
    }
    missed = sorted(value for value, usable in pool if usable and value and value not in first)
    return Expected(matches, counts, missed[:3], sorted(left)[:3])


def write_lists(folder: Path, files: Sequence[Sequence[str | None]], column: str = "URL") -> str:
    folder.mkdir()
    for number, values in enumerate(files):
        table = pa.table({"row": list(range(len(values))), column: pa.array(values, pa.string())})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=500)
    return str(folder)


def find(uri: str, match_by: str, match_column: str | None = None) -> ExternalList:
    return ExternalList.find(uri, match_by=match_by, match_column=match_column, setting="selection.keep_list")  # type: ignore[arg-type]


def run(folder: Path, catalog: Catalog, listed: ExternalList) -> Joined:
    stages = join_stages(str(folder), catalog, listed, label="test")
    for stage in stages:
        if not stage.artifact.is_complete():
            stage.build(Display())
    return Joined(stages[-1].artifact)


def matches(aligned: Joined, catalog: Catalog) -> list[Position | None]:
    found = [aligned.part(part) for part in part_rows(catalog)]
    assert [len(match.file) for match in found] == list(catalog.rows_per_part)
    files, rows = np.concatenate([match.file for match in found]), np.concatenate([match.row for match in found])
    assert files.dtype == np.int32
    assert rows.dtype == np.int64
    return [None if file < 0 else (file, row) for file, row in zip(files.tolist(), rows.tolist(), strict=True)]


@pytest.fixture(scope="module")
def pool() -> list[dict[str, Any]]:
    return made_pool()


@pytest.fixture(scope="module")
def expected(pool: list[dict[str, Any]]) -> Expected:
    return oracle([(pair["url"], pair["status"] == Status.OK) for pair in pool], made_list())


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_lists(tmp_path_factory.mktemp("lists") / "lists", made_list())


@pytest.mark.parametrize(
    ("rows", "pairs_per_group", "rows_per_bucket", "rows_per_piece"),
    [
        ([NUM_PAIRS], 10_000, 10_000, 10_000),
        ([500, 700, 0, 1, 999, 300, 800, 700], 570, 1200, 1000),
        ([10] * 400, 1000, 400, 300),
    ],
    ids=["1-group-1-bucket", "7-groups-5-buckets", "many-parts"],
)
def test_every_pair_gets_the_match_of_a_dictionary(
    pool: list[dict[str, Any]],
    lists: str,
    expected: Expected,
    rows: list[int],
    pairs_per_group: int,
    rows_per_bucket: int,
    rows_per_piece: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(join, "PAIRS_PER_GROUP", pairs_per_group)
    monkeypatch.setattr(join, "ROWS_PER_BUCKET", rows_per_bucket)
    monkeypatch.setattr(external_list, "ROWS_PER_PIECE", rows_per_piece)
    catalog = write_catalog(tmp_path, pool, rows)
    aligned = run(tmp_path, catalog, find(lists, "url"))
    assert matches(aligned, catalog) == expected.matches
    assert {name: aligned.totals[name] for name in expected.counts} == expected.counts
    assert all(expected.counts.values()), "every case occurs"
    assert aligned.totals["pool_examples"] == expected.pool_examples
    assert aligned.totals["list_examples"] == expected.list_examples


def test_small_files_share_a_task_and_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "PAIRS_PER_GROUP", 10)
    files = [[f"url{file}-{row}" for row in range(4)] for file in range(12)]
    pieces = find(write_lists(tmp_path / "lists", files), "url").pieces()
    bundles = join._bundles(pieces, 48)
    assert [len(bundle) for bundle in bundles] == [3, 2, 3, 2, 2]
    assert [piece for bundle in bundles for piece in bundle] == pieces


def test_a_lost_part_is_computed_again(
    pool: list[dict[str, Any]], lists: str, expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "ROWS_PER_BUCKET", 1000)
    monkeypatch.setattr(join, "PAIRS_PER_GROUP", 1000)
    catalog, listed = write_catalog(tmp_path, pool, [1000] * 4), find(lists, "url")
    run(tmp_path, catalog, listed)
    stages = join_stages(str(tmp_path), catalog, listed, label="test")
    for stage in stages:
        artifact = stage.artifact
        Path(artifact.path("manifest.json")).unlink()
        for path in Path(artifact.path("parts")).glob("000001.*"):
            path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("parts/00000[0,2]*")}
    again = run(tmp_path, catalog, listed)
    assert matches(again, catalog) == expected.matches
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_list_of_datacomp_uids_is_joined(
    pool: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_list, "ROWS_PER_PIECE", 700)
    catalog = write_catalog(tmp_path, pool, [NUM_PAIRS // 2] * 2)
    wanted = [int(pair["uid"], 16) for pair in pool[1::2]]
    random.Random(2).shuffle(wanted)
    halves = [(uid >> 64, uid & 2**64 - 1) for uid in [*wanted, 5, 7]]
    np.save(tmp_path / "uids.npy", np.array(halves, UID_DTYPE))
    aligned = run(tmp_path, catalog, find(f"{tmp_path}/uids.npy", "uid"))
    order = {uid: row for row, uid in enumerate(wanted)}
    rows = [order.get(int(pair["uid"], 16)) for pair in pool]
    assert matches(aligned, catalog) == [None if row is None else (0, row) for row in rows]
    assert aligned.totals["list_unmatched"] == 2
    assert aligned.totals["list_examples"] == [f"{5:032x}", f"{7:032x}"]


def test_numeric_keys_match_in_a_column_found_by_name(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, [{"key": str(row)} for row in range(20)], [20])
    for name, values in {"whole": [19, 3, None], "real": [19.0, 3.0, None]}.items():
        pq.write_table(pa.table({"SAMPLE_ID": values}), tmp_path / f"{name}.parquet")
        aligned = run(tmp_path, catalog, find(f"{tmp_path}/{name}.parquet", "key", "sample_id"))
        assert {row: match for row, match in enumerate(matches(aligned, catalog)) if match} == {19: (0, 0), 3: (0, 1)}


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("match_by", "text"),
    [("uid", "but no pair of the pool has a uid"), ("key", "no column 'key' or 'image_path'; its columns: row, URL")],
)
def test_a_missing_column_is_an_error(match_by: str, text: str, lists: str, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, [{"key": "a", "url": "b"}], [1])
    if match_by == "uid":
        lists = write_lists(tmp_path / "uids", [["a"]], column="uid")
    with pytest.raises(UserError) as error:
        run(tmp_path, catalog, find(lists, match_by))
    assert text in message(error)


def test_a_list_without_values_is_an_error(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, [{"key": "a", "url": "b"}], [1])
    lists = write_lists(tmp_path / "empty", [[None, ""]])
    with pytest.raises(UserError, match="none of the list's 2 rows has a url"):
        run(tmp_path, catalog, find(lists, "url"))
    lists = write_lists(tmp_path / "no_rows", [[]])
    with pytest.raises(UserError, match=r"uri: the list has no rows; expected rows with a url"):
        run(tmp_path, catalog, find(lists, "url"))


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(UserError, match=r"torn\.parquet is not readable as Parquet"):
        find(f"{tmp_path}/torn.parquet", "url").pieces()
    np.save(tmp_path / "numbers.npy", np.arange(5))
    with pytest.raises(UserError, match=r"got int64 \(5,\), expected DataComp's uids"):
        find(f"{tmp_path}/numbers.npy", "uid").pieces()
    with pytest.raises(UserError, match=r"an \.npy file is a list of DataComp's uids"):
        find(f"{tmp_path}/numbers.npy", "key")
    np.save(tmp_path / "cut.npy", np.zeros(100, UID_DTYPE))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"got 1,000 bytes, expected 1,728"):
        find(f"{tmp_path}/cut.npy", "uid").pieces()
    (tmp_path / "text.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"text\.npy is not an \.npy file"):
        find(f"{tmp_path}/text.npy", "uid").pieces()
