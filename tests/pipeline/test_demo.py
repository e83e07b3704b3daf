"""The embedded pool: what it holds, that nothing held out leaks into training, and the shards written from it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from braceexpand import braceexpand
from PIL import Image

from orchestrator.demo.build_pool import split
from orchestrator.demo.near_duplicates import MAX_PICTURE_COSINE, _alike, lone_pairs
from orchestrator.demo.personal_data import masked
from orchestrator.demo.shards import POOL_PATH, DemoPool, write_shards

TRAIN, HELDOUT, ZERO_SHOT = (
    pq.read_table(POOL_PATH / f"{name}.parquet").to_pylist() for name in ("train", "heldout", "zero_shot")
)
ALIKE_WHEN_MASKED = "openclipart-food__fruit__cherry_jonathan_dietrich_01"


@pytest.fixture(scope="module")
def demo_pool(tmp_path_factory: pytest.TempPathFactory) -> DemoPool:
    return write_shards(tmp_path_factory.mktemp("demo") / "shards", pairs_per_shard=3000)


def emoji_hexcodes(rows: list[dict]) -> set[str]:
    return {row["key"].split("-", 1)[1] for row in rows if row["source"] != "openclipart"}


def file_digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def members(path: str | Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def square(colour: tuple[int, int, int], *, hole: bool = False) -> bytes:
    image = Image.new("RGB", (96, 96), (255, 255, 255))
    image.paste(colour, (20, 20, 76, 76))
    if hole:
        image.paste((255, 255, 255), (30, 30, 66, 66))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP")
    return buffer.getvalue()


def test_pool_counts() -> None:
    assert (len(TRAIN), len(HELDOUT), len(ZERO_SHOT)) == (9928, 500, 1852)
    assert len({row["key"] for row in TRAIN + HELDOUT + ZERO_SHOT}) == 9928 + 500 + 1852
    assert sum(path.stat().st_size for path in POOL_PATH.glob("*.parquet")) < 17e6
    assert all(row["caption"] and row["licence"] and row["creator"] for row in TRAIN + HELDOUT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("muffin, jane.doe+art@mail.example.org, dessert", "muffin, <email>, dessert"),
        ("Jane Doe (jane_d@example.fr)", "Jane Doe (<email>)"),
        ("mailto:jane@in-example.de", "<email>"),
        ("call +49 30 901820 or (212) 736-5000 now", "call <phone> or <phone> now"),
        ("Flag of Iraq, 1959-1963, at 12:30, 0.0 to 1.0, @ sign, e-mail", None),
    ],
)
def test_addresses_and_phone_numbers_are_masked(text: str, expected: str | None) -> None:
    assert masked(text) == (text if expected is None else expected)


def test_the_pool_holds_no_address_and_no_phone_number() -> None:
    texts = {row[name] for row in TRAIN + HELDOUT + ZERO_SHOT for name in ("caption", "creator") if row.get(name)}
    assert len(texts) > 7000
    assert [text for text in texts if masked(text) != text] == []
    assert sum("<email>" in row["caption"] for row in TRAIN + HELDOUT) == 125


def test_zero_shot_classes_are_one_image_each_with_distinct_names() -> None:
    assert [row["class_index"] for row in ZERO_SHOT] == list(range(1852))
    assert len({row["class_name"] for row in ZERO_SHOT}) == 1852
    assert len({row["group"] for row in ZERO_SHOT}) == 9


def test_no_held_out_emoji_is_trained_on_in_either_style() -> None:
    assert len(emoji_hexcodes(HELDOUT)) == 100
    assert not emoji_hexcodes(HELDOUT) & emoji_hexcodes(TRAIN)


def test_held_out_pairs_have_no_near_duplicate() -> None:
    rows = HELDOUT + TRAIN
    lone = lone_pairs([r["image"] for r in rows], [r["caption"] for r in rows], [r["key"] for r in rows])
    # the split saw the captions with their addresses; without its address, one training caption has the same words
    assert [row["key"] for row, is_lone in zip(HELDOUT, lone, strict=False) if not is_lone] == [ALIKE_WHEN_MASKED]
    assert not lone[len(HELDOUT) :].all()


def test_lone_pairs_sees_alike_pictures_and_alike_captions() -> None:
    images = [square((255, 0, 0)), square((250, 5, 5)), square((0, 0, 255)), square((0, 160, 0), hole=True)]
    captions = ["a red square", "crimson", "sea and sky", "a hole"]
    families = ["0", "1", "2", "3"]
    assert lone_pairs(images, captions, families).tolist() == [False, False, True, True]
    assert lone_pairs(images, ["a", "b", "same words", "words, SAME"], families).tolist() == [False] * 4
    assert lone_pairs(images, captions, ["0", "0", "2", "3"]).all()


def test_near_ties_do_not_depend_on_the_tile() -> None:
    rng = np.random.default_rng(0)
    ways = rng.standard_normal((2, 40, 768))
    one = ways[0] / np.linalg.norm(ways[0], axis=1, keepdims=True)
    across = ways[1] - (ways[1] * one).sum(axis=1, keepdims=True) * one
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    # as float32, their cosines are at the threshold up to the last digits
    other = MAX_PICTURE_COSINE * one + np.sqrt(1 - MAX_PICTURE_COSINE**2) * across
    pictures = np.concatenate([one, other]).astype(np.float32)
    exact = [(pictures[row].astype(float) * pictures[row + 40].astype(float)).sum() for row in range(40)]
    assert 0 < sum(cosine >= MAX_PICTURE_COSINE for cosine in exact) < 40
    expected = [cosine >= MAX_PICTURE_COSINE for cosine in exact]
    for rows in (1, 3, 16, 80):
        tiles = [_alike(pictures, slice(start, start + rows)) for start in range(0, 80, rows)]
        assert np.diagonal(np.concatenate(tiles), 40).tolist() == expected, f"tiles of {rows} rows"


def test_split_is_deterministic_and_drops_only_the_other_styles_of_held_out_emoji() -> None:
    pool = [{**row, "family": row["key"].split("-", 1)[1]} for row in (TRAIN + HELDOUT)[-1500:]]
    train, heldout = split(pool)
    assert (train, heldout) == split(pool)
    missing = {row["key"] for row in pool} - {row["key"] for row in train + heldout}
    assert {key.split("-", 1)[1] for key in missing} <= emoji_hexcodes(heldout)
    assert len({row["family"] for row in heldout}) == len(heldout)


def test_shards_hold_every_pair_once_with_keys_of_img2dataset(demo_pool: DemoPool) -> None:
    paths = list(braceexpand(demo_pool.train_uri))
    assert [Path(path).name for path in paths] == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]
    images, captions = [], []
    for shard, path in enumerate(paths):
        files = members(path)
        keys = sorted({name.split(".")[0] for name in files})
        assert keys == [f"{shard:05d}{position:04d}" for position in range(len(keys))]
        images += [files[f"{key}.webp"] for key in keys]
        captions += [files[f"{key}.txt"].decode() for key in keys]
    assert images == [row["image"] for row in TRAIN]
    assert captions == [row["caption"] for row in TRAIN]


def test_sidecar_and_json_agree_with_the_tar_by_key(demo_pool: DemoPool) -> None:
    path = Path(demo_pool.retrieval_uri)
    files = members(path)
    sidecar = pq.read_table(path.with_suffix(".parquet")).to_pylist()
    assert len(sidecar) == len(HELDOUT) == json.loads((path.parent / "00000_stats.json").read_text())["successes"]
    for row in sidecar:
        assert json.loads(files[f"{row['key']}.json"]) == row
        assert files[f"{row['key']}.txt"].decode() == row["caption"]
        image = files[f"{row['key']}.webp"]
        assert hashlib.sha256(image).hexdigest() == row["sha256"]
        assert Image.open(io.BytesIO(image)).size == (row["width"], row["height"])
        assert row["status"] == "success"
        assert re.fullmatch("[0-9a-f]{32}", row["uid"])
    assert len({row["uid"] for row in sidecar}) == len(sidecar)


def test_zero_shot_labels_point_at_their_names(demo_pool: DemoPool) -> None:
    path = Path(demo_pool.zero_shot_uri)
    files = members(path)
    names = path.with_suffix(".classnames.txt").read_text(encoding="utf-8").splitlines()
    templates = path.with_suffix(".templates.txt").read_text(encoding="utf-8").splitlines()
    assert all("{c}" in template for template in templates)
    assert len(files) == 2 * len(ZERO_SHOT)
    for position, row in enumerate(ZERO_SHOT):
        assert names[int(files[f"{position:09d}.cls"])] == row["class_name"]
        assert files[f"{position:09d}.webp"] == row["image"]


def test_two_processes_at_once_leave_one_whole_pool_with_the_same_bytes(demo_pool: DemoPool, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    script = f"from orchestrator.demo.shards import write_shards; write_shards({str(target)!r}, pairs_per_shard=3000)"
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert list(tmp_path.iterdir()) == [target]
    assert file_digests(target) == file_digests(Path(demo_pool.retrieval_uri).parent.parent)


def test_a_second_call_writes_nothing(demo_pool: DemoPool) -> None:
    folder = Path(demo_pool.retrieval_uri).parent.parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_shards(folder, pairs_per_shard=3000) == demo_pool
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_with_something_else_is_refused(demo_pool: DemoPool, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="choose another folder"):
        write_shards(tmp_path)
    with pytest.raises(ValueError, match="10 shards of 1000"):
        write_shards(Path(demo_pool.retrieval_uri).parent.parent, pairs_per_shard=1000)


def test_keys_have_room_for_four_digits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 10000"):
        write_shards(tmp_path / "shards", pairs_per_shard=10_001)
    assert not (tmp_path / "shards").exists()
