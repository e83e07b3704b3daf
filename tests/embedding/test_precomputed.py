"""Precomputed embeddings: every pair gets its own vector for any order of the files, and errors are one line."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.catalog import Catalog, part_rows
from orchestrator.data.join import Joined
from orchestrator.embedding import precomputed, precomputed_files
from orchestrator.embedding.precomputed import precomputed_stages
from orchestrator.embedding.precomputed_files import Columns, open_precomputed
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.console import Display
from orchestrator.errors import UserError
from orchestrator.source import Status, row_groups
from orchestrator.storage import files, npy
from orchestrator.storage.npy import from_npy, open_npy
from tests.support.pools import config_of, write_catalog

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_PAIRS, NUM_LISTED, DIM = 1200, 1000, 24
ROWS = [400, 0, 350, 450]
UNIT = 2e-3
Write = Callable[["Listed", Path], str]


@dataclass
class Listed:
    """The rows of an embedding: shuffled keys, one of them twice, and unnormalised vectors of two towers."""

    keys: list[str]
    image: np.ndarray
    text: np.ndarray

    def expected(self, tower: str) -> np.ndarray:
        """The expected vectors of the pool, from a dictionary. Of two rows with the same key, the first one counts."""
        raw = getattr(self, tower).astype(np.float64)
        first = {key: row for row, key in reversed(list(enumerate(self.keys)))}
        out = np.zeros((NUM_PAIRS, DIM))
        for number in range(NUM_PAIRS):
            vector = raw[first[key_of(number)]] if key_of(number) in first else np.zeros(DIM)
            if np.isfinite(vector).all() and vector.any():
                out[number] = vector / np.linalg.norm(vector)
        return out


def key_of(number: int) -> str:
    return f"{number:09d}"


@pytest.fixture(scope="module")
def listed() -> Listed:
    draw, generator = random.Random(0), np.random.default_rng(0)
    numbers = draw.sample(range(NUM_PAIRS + 50), NUM_LISTED)
    numbers[700] = numbers[3]
    image, text = (generator.normal(size=(NUM_LISTED, DIM)).astype(np.float16) * 10 for _ in range(2))
    in_pool = [row for row, number in enumerate(numbers) if number < NUM_PAIRS and row not in (3, 700)]
    image[in_pool[0]], image[in_pool[1], 5], image[in_pool[2], 6] = 0, np.nan, np.inf
    text[in_pool[3]] = 0
    return Listed([key_of(number) for number in numbers], image, text)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    status = [Status.BAD_IMAGE if number % 10 == 9 else Status.OK for number in range(NUM_PAIRS)]
    pairs = [{"key": key_of(number), "status": status[number]} for number in range(NUM_PAIRS)]
    return write_catalog(tmp_path / "store", pairs, ROWS)


def write_clip_retrieval(listed: Listed, folder: Path, towers: Sequence[str] = ("img", "text")) -> str:
    cuts = [0, 300, 301, NUM_LISTED]
    for name in ("metadata", *(f"{tower}_emb" for tower in towers)):
        (folder / name).mkdir(parents=True)
    # as text, 10 would come before 2
    for number, (start, stop) in zip([1, 2, 10], pairwise(cuts), strict=True):
        table = pa.table({"image_path": listed.keys[start:stop], "caption": ["a caption"] * (stop - start)})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
        for tower in towers:
            raw = {"img": listed.image, "text": listed.text}[tower][start:stop]
            np.save(folder / f"{tower}_emb" / f"{tower}_emb_{number}.npy", raw)
    return str(folder)


def list_column(vectors: np.ndarray, kind: str) -> pa.Array:
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, DIM)
    lists = [None if not np.isfinite(vector).all() else vector.tolist() for vector in vectors.astype(np.float64)]
    return pa.array(lists, pa.list_(pa.float64()))


def write_columns(listed: Listed, folder: Path, kind: str = "fixed") -> str:
    folder.mkdir(parents=True)
    for number, rows in enumerate([slice(0, 450), slice(450, NUM_LISTED)]):
        columns = {
            "key": listed.keys[rows],
            "image_embedding": list_column(listed.image[rows], kind),
            "words": list_column(listed.text[rows], kind),
        }
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=200)
    return str(folder)


def stages_of(folder: Path, catalog: Catalog, node: Mapping[str, Any]) -> Any:
    source = {"format": "table", "uri": "nothing"}
    config = config_of(source, folder / "store", embedding={"theirs": {"max_missing": 0.3, **node}})
    return precomputed_stages(config, "theirs", catalog)


def build(folder: Path, catalog: Catalog, node: Mapping[str, Any]) -> Embedding:
    stages = stages_of(folder, catalog, node)
    for stage in stages:
        stage.build(Display())
    return Embedding(stages[-1].artifact)


def whole(of_part: Callable[[int], np.ndarray]) -> np.ndarray:
    parts = [of_part(index) for index in range(len(ROWS))]
    assert [len(part) for part in parts] == ROWS
    return np.concatenate(parts)


def check_both_towers(found: Embedding, listed: Listed) -> None:
    for tower in ("image", "text"):
        expected, vectors = listed.expected(tower), whole(getattr(found, tower))
        assert vectors.dtype == np.float16
        assert np.abs(vectors.astype(np.float64) - expected).max() < UNIT
        assert (vectors.any(axis=1) == expected.any(axis=1)).all()
        assert found.artifact.totals[tower] == expected.any(axis=1).sum()
        assert found.dim(tower) == DIM
    both = listed.expected("image").any(axis=1) & listed.expected("text").any(axis=1)
    scores = whole(found.clip_score)
    assert (np.isfinite(scores) == both).all()
    assert np.abs(scores - (listed.expected("image") * listed.expected("text")).sum(axis=1))[both].max() < 1e-6


def test_clip_retrieval_in_any_order(listed: Listed, catalog: Catalog, tmp_path: Path) -> None:
    found = build(
        tmp_path, catalog, {"kind": "clip_retrieval", "uri": write_clip_retrieval(listed, tmp_path / "theirs")}
    )
    check_both_towers(found, listed)
    totals = found.artifact.totals
    keys = set(listed.keys)
    unmatched = [n for n in range(NUM_PAIRS) if key_of(n) not in keys and n % 10 != 9]
    assert totals["problems"] == {"unmatched": len(unmatched), "zero": 2, "not_finite": 2}
    assert f"{key_of(unmatched[0])}: has no vector" in totals["examples"]


@pytest.mark.parametrize("kind", ["fixed", "any length"])
def test_columns_of_parquet(listed: Listed, catalog: Catalog, kind: str, tmp_path: Path) -> None:
    uri = write_columns(listed, tmp_path / "theirs", kind)
    found = build(tmp_path, catalog, {"kind": "columns", "uri": uri, "text_column": "words"})
    check_both_towers(found, listed)


@dataclass
class Reads:
    """The row groups that were opened, and the bytes read from Parquet files on disk."""

    groups: int = 0
    num_bytes: int = 0

    @classmethod
    def counted(cls, monkeypatch: pytest.MonkeyPatch) -> Reads:
        of_group, reads = precomputed_files._of_group, cls()

        class Counting(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                data = super().read(size)
                reads.num_bytes += len(data)
                return data

        def counting(*options: Any) -> Any:
            reads.groups += 1
            return of_group(*options)

        monkeypatch.setattr(precomputed_files, "_of_group", counting)
        monkeypatch.setattr(row_groups, "open_file", lambda uri, **_: Counting(uri))
        return reads


@pytest.mark.parametrize(("shuffled", "groups"), [(False, {1: 42, 10: 6, 40: 3}), (True, {1: 120, 10: 12, 40: 3})])
def test_a_row_group_is_read_once_per_run_of_parts(
    shuffled: bool, groups: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dim, numbers = 256, list(range(NUM_PAIRS))
    if shuffled:
        random.Random(1).shuffle(numbers)
    catalog = write_catalog(tmp_path / "store", [{"key": key_of(number)} for number in range(NUM_PAIRS)], [30] * 40)
    raw = np.random.default_rng(5).normal(size=(NUM_PAIRS, dim)).astype(np.float32)
    columns = {
        "key": [key_of(number) for number in numbers],
        "image_embedding": pa.FixedSizeListArray.from_arrays(pa.array(raw[numbers].reshape(-1)), dim),
    }
    (tmp_path / "theirs").mkdir()
    pages = {"row_group_size": 400, "data_page_size": 2048, "use_dictionary": False, "compression": "none"}
    pq.write_table(pa.table(columns), tmp_path / "theirs" / "0.parquet", **pages)
    node = {"kind": "columns", "uri": str(tmp_path / "theirs")}
    *stages, _ = stages_of(tmp_path, catalog, node)
    for stage in stages:
        stage.build(Display())
    config = config_of({"format": "table"}, tmp_path, embedding={"c": node})
    opened, parts = open_precomputed(config.embedding["c"], "c"), part_rows(catalog)  # type: ignore[arg-type]
    work = precomputed.FetchRun(catalog, opened, Joined(stages[-1].artifact), {"image": dim})
    # in proportion to these small row groups
    monkeypatch.setattr(precomputed_files, "COLUMN_BUFFER", 4096)
    monkeypatch.setattr(precomputed_files, "CHUNK_ROWS", 10)
    found, reads = {}, {}
    for size in groups:
        with monkeypatch.context() as patch:
            reads[size] = Reads.counted(patch)
            found[size] = [one for first in range(0, 40, size) for one in work(parts[first : first + size])]
    assert {size: read.groups for size, read in reads.items()} == groups
    assert reads[40].num_bytes < 1.3 * raw.nbytes, "the footers, and each vector once"
    assert reads[1].num_bytes > 5 * raw.nbytes
    assert found[1] == found[10] == found[40]
    vectors = np.concatenate([from_npy(one.files["image.npy"]) for one in found[40]])
    assert np.abs(vectors - raw / np.linalg.norm(raw, axis=1, keepdims=True)).max() < UNIT


def test_runs_have_bounded_size(listed: Listed, catalog: Catalog, tmp_path: Path) -> None:
    columns = {"kind": "columns", "uri": write_columns(listed, tmp_path / "columns"), "text_column": "words"}
    arrays = {"kind": "clip_retrieval", "uri": write_clip_retrieval(listed, tmp_path / "arrays")}
    config = config_of({"format": "table"}, tmp_path, embedding={"columns": columns, "arrays": arrays})
    opened = {name: open_precomputed(settings, name) for name, settings in config.embedding.items()}  # type: ignore[arg-type]
    part = part_rows(catalog)[0]
    # with both towers in float32, in which they are scored
    assert [precomputed._precision(dims) for dims in ({"image": DIM}, {"image": DIM, "text": DIM})] == [
        np.float16,
        np.float32,
    ]
    row_bytes = 2 * DIM * 4
    assert precomputed._share(opened["columns"], row_bytes, part) == ROWS[0] * row_bytes / precomputed.RUN_BYTES
    assert precomputed._share(opened["arrays"], row_bytes, part) == 1


def test_one_tower_has_no_score(listed: Listed, catalog: Catalog, tmp_path: Path) -> None:
    uri = write_clip_retrieval(listed, tmp_path / "theirs", ["img"])
    found = build(tmp_path, catalog, {"kind": "clip_retrieval", "uri": uri})
    assert found.has("image")
    assert not found.has("text")
    assert not list(Path(found.artifact.path("parts")).glob("*.clip_score.npy"))


def test_more_missing_vectors_than_allowed_are_an_error(listed: Listed, catalog: Catalog, tmp_path: Path) -> None:
    uri = write_clip_retrieval(listed, tmp_path / "theirs")
    usable = [n for n in range(NUM_PAIRS) if n % 10 != 9]
    missing = sorted(key_of(n) for n in usable if key_of(n) not in set(listed.keys))
    others = sorted(key for key in listed.keys if int(key) >= NUM_PAIRS)
    with pytest.raises(UserError) as error:
        build(tmp_path, catalog, {"kind": "clip_retrieval", "uri": uri, "max_missing": 0.05})
    message = str(error.value)
    assert "\n" not in message
    found = f"matched by key, {len(usable) - len(missing):,} of {len(usable):,} pairs with an image have a vector"
    assert f"{found} and {len(missing):,} have none" in message
    assert f"{len(missing):,} have none; at most 5.0% allowed" in message
    assert ", ".join(missing[:3]) in message
    assert ", ".join(others[:3]) in message
    assert "raise embedding.theirs.max_missing" in message


def break_rows(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_2.npy", np.zeros((2, DIM), np.float16))


def break_dims(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_2.npy", np.zeros((1, DIM + 1), np.float16))


def break_shape(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_2.npy", np.zeros(1, np.float16))


def break_order(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_1.npy", np.zeros((DIM, 300), np.float16).T)


def break_end(folder: Path) -> None:
    path = folder / "text_emb" / "text_emb_10.npy"
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "img_emb" / "img_emb_2.npy").unlink(), "metadata_2.parquet has no counterpart"),
        (lambda folder: (folder / "metadata" / "metadata_2.parquet").unlink(), "img_emb_2.npy has no counterpart"),
        (lambda folder: (folder / "metadata" / "metadata_2.parquet").write_bytes(b"x"), "not readable as Parquet"),
        (lambda folder: (folder / "img_emb" / "mine.npy").touch(), "expected names like img_emb_0.npy"),
        (break_rows, "img_emb_2.npy: got 2 vectors, expected one for each of 1 rows"),
        (break_dims, f"img_emb_2.npy: got vectors of {DIM + 1} numbers, expected {DIM} as in img_emb_1.npy"),
        (break_shape, "img_emb_2.npy: got float16 (1,), expected floating-point numbers [rows, dim]"),
        (break_order, "img_emb_1.npy: got float16 (300, 24) in Fortran order"),
        (break_end, "text_emb_10.npy: got"),
    ],
)
def test_files_that_do_not_fit_together_are_an_error(
    listed: Listed, catalog: Catalog, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    uri = write_clip_retrieval(listed, tmp_path / "theirs")
    damage(tmp_path / "theirs")
    with pytest.raises(UserError) as error:
        build(tmp_path, catalog, {"kind": "clip_retrieval", "uri": uri})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"kind": "clip_retrieval"}, "embedding.theirs.uri is not set"),
        ({"kind": "columns", "image_column": "vector"}, "embedding.theirs.image_column: 0.parquet has no column"),
        ({"kind": "columns", "image_column": "key"}, "column 'key' of 0.parquet is string; expected lists"),
        ({"kind": "columns", "image_column": None}, "expected image_column, text_column or both"),
        ({"kind": "columns", "match_by": "uid", "match_column": "sha"}, "0.parquet has no column 'sha'"),
    ],
)
def test_settings_that_do_not_fit_the_files_are_an_error(
    listed: Listed, catalog: Catalog, node: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if node["kind"] == "columns":
        node = {**node, "uri": write_columns(listed, tmp_path / "theirs")}
    with pytest.raises(UserError) as error:
        build(tmp_path, catalog, node)
    assert message in str(error.value)


def test_vectors_of_two_lengths_in_a_column_are_an_error(listed: Listed, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    table = pa.table({"key": ["a", "b", "c"], "image_embedding": [None, [1.0, 2.0], [1.0]]})
    pq.write_table(table, tmp_path / "theirs" / "0.parquet")
    config = config_of({"format": "table"}, tmp_path, embedding={"c": {"kind": "columns", "uri": f"{tmp_path}/theirs"}})
    columns = open_precomputed(config.embedding["c"], "c")  # type: ignore[arg-type]
    assert isinstance(columns, Columns)
    assert columns.dims() == {"image": 2}
    with pytest.raises(UserError, match="has vectors of 1 numbers, expected 2"):
        list(columns.vectors("image", 2, 0, np.array([1, 2])))


def test_rows_of_an_array_are_read_by_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(5000, 33)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    array, num_bytes = open_npy(str(tmp_path / "a.npy")), 0
    read_spans = npy.read_spans

    def counting(uri: str, spans: Sequence[tuple[int, int]]) -> Any:
        nonlocal num_bytes
        num_bytes += sum(size for _, size in spans)
        return read_spans(uri, spans)

    monkeypatch.setattr(npy, "read_spans", counting)
    monkeypatch.setattr(npy, "MAX_REQUEST", 1000)
    rows = np.array([4999, 7, 8, 9, 7, 0, 3000])
    assert (array.take(rows) == values[rows]).all()
    assert num_bytes == 6 * 33 * 4, "each wanted row once, and nothing else"
    assert (array.read(100, 50) == values[100:150]).all()
    assert array.take(rows[:0]).shape == (0, 33)


def test_rows_of_an_array_are_read_from_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float16)
    np.save(tmp_path / "a.npy", values)
    files.write(f"{s3_bucket}/a.npy", (tmp_path / "a.npy").read_bytes())
    rows = np.array([299, 5, 6, 120, 0])
    assert (open_npy(f"{s3_bucket}/a.npy").take(rows) == values[rows]).all()


def test_rows_of_a_column_are_read_from_a_bucket(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=(900, 64)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 64)
    table = pa.table({"key": [key_of(number) for number in range(900)], "image_embedding": lists})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=400, data_page_size=4096, use_dictionary=False)
    files.write(f"{s3_bucket}/theirs/a.parquet", (tmp_path / "a.parquet").read_bytes())
    node = {"kind": "columns", "uri": f"{s3_bucket}/theirs"}
    config = config_of({"format": "table"}, tmp_path, embedding={"c": node})
    opened = open_precomputed(config.embedding["c"], "c")  # type: ignore[arg-type]
    # many requests per row group
    monkeypatch.setattr(precomputed_files, "COLUMN_BUFFER", 8192)
    rows = np.array([3, 3, 250, 399, 400, 899])
    assert (np.concatenate(list(opened.vectors("image", 64, 0, rows))) == values[rows]).all()
