"""An external keep list: pruned as a table, exported, and applied to the shards that were downloaded after it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.config import Config
from orchestrator.engine.console import Display
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.errors import UserError
from orchestrator.export import export_keep_list
from tests.support.pools import Pair, Selected, build_selection, caption, config_of, make_pairs, split, write_tars

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_PAIRS = 120
NUM_SHARDS = 3


def url_of(number: int) -> str:
    return f"http://pictures.example/{number}"


def uid_of(number: int) -> str:
    return f"{(number + 1) << 70 | 7 * number:032x}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `kept.parquet` and `kept.npy`, exported from a selection on a table, and the numbers kept."""
    folder = tmp_path_factory.mktemp("table")
    numbers = list(range(NUM_PAIRS))
    told = {
        "caption": [caption(number) for number in numbers],
        "URL": [url_of(number) for number in numbers],
        "uid": [uid_of(number) for number in numbers],
    }
    pq.write_table(pa.table(told), folder / "table.parquet")
    selection = {"steps": ["wfpp"], "wfpp": {"keep_fraction": 0.5, "min_count": 2}}
    source = {"format": "table", "uri": f"{folder}/table.parquet", "part_rows": 50}
    config = config_of(source, folder / "store", selection=selection)
    selected = build_selection(config)
    for name in ("kept.parquet", "kept.npy"):
        export_keep_list(record_of(config, selected), f"{folder}/{name}", Display())
    (folder / "numbers").write_text(" ".join(map(str, selected.ordinals())))
    return folder


def record_of(config: Config, selected: Selected) -> RunRecord:
    stages = [StageRecord.of(stage, reused=False, seconds=0) for stage in selected.stages]
    told = config.model_dump(mode="json")
    return RunRecord(name="t", verb="select", config=told, stages=stages, versions={}, started="", wall_seconds=0)


def downloaded(folder: Path, numbers: list[int]) -> str:
    """Shards of the given pairs in that order, with new keys, as img2dataset would have written them."""
    images = make_pairs(max(numbers) + 1)
    pairs = [Pair(f"{place:09d}", caption(number), images[number].image) for place, number in enumerate(numbers)]
    uri = write_tars(folder, pairs, num_shards=NUM_SHARDS)
    for shard, members in enumerate(split(pairs, NUM_SHARDS)):
        own = [numbers[int(pair.key)] for pair in members]
        told = {
            "key": [pair.key for pair in members],
            "status": ["success"] * len(members),
            "caption": [pair.caption for pair in members],
            "url": [url_of(number) for number in own],
            "uid": [uid_of(number) for number in own],
        }
        pq.write_table(pa.table(told), folder / f"{shard:05d}.parquet")
    return uri


def apply(folder: Path, uri: str, node: dict[str, Any], *before: str) -> Selected:
    selection = {"steps": [*before, "keep_list"], "keep_list": node, "random": {"keep_fraction": 0.5}}
    return build_selection(config_of({"format": "webdataset", "uri": uri}, folder / "store", selection=selection))


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[int]]:
    """All pairs as shards, in another order; and the order."""
    numbers = list(range(NUM_PAIRS))
    random.Random(3).shuffle(numbers)
    return downloaded(tmp_path_factory.mktemp("tars") / "pool", numbers), numbers


def kept_before(exported: Path) -> set[int]:
    kept = {int(number) for number in (exported / "numbers").read_text().split()}
    assert len(kept) == NUM_PAIRS // 2
    return kept


@pytest.mark.parametrize(("name", "match_by"), [("kept.parquet", "url"), ("kept.parquet", "uid"), ("kept.npy", "uid")])
def test_a_list_made_before_the_download_applies_after_it(
    exported: Path, shuffled: tuple[str, list[int]], name: str, match_by: str, tmp_path: Path
) -> None:
    uri, numbers = shuffled
    found = apply(tmp_path, uri, {"uri": f"{exported}/{name}", "match_by": match_by, "max_missing": 0})
    assert {numbers[place] for place in found.ordinals()} == kept_before(exported)
    totals = found.stages[-1].artifact.totals
    assert totals["kept"] == NUM_PAIRS // 2
    assert totals["reasons"] == {"not_on_the_list": NUM_PAIRS // 2}


def test_only_pairs_that_reach_the_step_stay(exported: Path, shuffled: tuple[str, list[int]], tmp_path: Path) -> None:
    uri, numbers = shuffled
    found = apply(tmp_path, uri, {"uri": f"{exported}/kept.npy", "match_by": "uid"}, "random")
    before = next(stage.artifact for stage in found.stages if stage.step == "random")
    drawn = found.ordinals([stage.artifact for stage in found.stages].index(before))
    assert found.ordinals() == [place for place in drawn if numbers[place] in kept_before(exported)]
    assert 0 < len(found.ordinals()) < len(drawn)


def test_too_many_listed_pairs_that_were_not_downloaded_are_an_error(exported: Path, tmp_path: Path) -> None:
    kept = sorted(kept_before(exported))
    lost, there = kept[:6], kept[6:]
    uri = downloaded(tmp_path / "pool", there)
    node = {"uri": f"{exported}/kept.parquet", "match_by": "url"}
    with pytest.raises(UserError) as error:
        apply(tmp_path, uri, node)
    message = str(error.value)
    assert "\n" not in message
    assert (
        f"selection.keep_list: the pool lacks 6 of the {len(kept)} pairs on the list, matched by url; at most 5.0%"
        in message
    )
    assert ", ".join(sorted(map(url_of, lost))[:3]) in message
    assert "raise selection.keep_list.max_missing" in message
    found = apply(tmp_path, uri, {**node, "max_missing": 0.2})
    assert found.ordinals() == list(range(len(there)))
    aligned = next(stage.artifact for stage in found.stages if stage.artifact.kind == "aligned")
    assert aligned.totals["list_unmatched"] == 6
    assert aligned.totals["matched"] == len(there)


def test_rows_without_a_value_count_as_missing(shuffled: tuple[str, list[int]], tmp_path: Path) -> None:
    listed = [url_of(0), url_of(1), None, ""]
    pq.write_table(pa.table({"url": listed}), tmp_path / "list.parquet")
    node = {"uri": f"{tmp_path}/list.parquet", "match_by": "url"}
    with pytest.raises(UserError, match=r"lacks 2 of the 4 pairs on the list.*; 2 rows of the list have no url\)"):
        apply(tmp_path, shuffled[0], node)
    assert len(apply(tmp_path, shuffled[0], {**node, "max_missing": 0.5}).ordinals()) == 2


def test_a_missing_list_is_an_error(shuffled: tuple[str, list[int]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"selection\.keep_list\.uri is not set"):
        apply(tmp_path, shuffled[0], {"match_by": "url"})
