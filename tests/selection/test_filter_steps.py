"""The filters as stages: the pairs they keep, the reasons they count, and that the parts do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.errors import UserError
from orchestrator.pruning.metaclip import spaced
from orchestrator.pruning.order import random_keys, step_seed
from orchestrator.selection.metaclip import read_counts
from tests.support.embedded import blobs, write_pool
from tests.support.pools import Selected, build_selection, config_of, make_pairs, real_captions, write_table, write_tars

pytestmark = pytest.mark.usefixtures("ray_cluster")


def select(table: str, store: Path, steps: dict[str, dict[str, Any]], part_rows: int = 1_000_000) -> Selected:
    source = {"format": "table", "uri": table, "part_rows": part_rows}
    return build_selection(config_of(source, store, selection={"steps": list(steps), **steps}))


@pytest.fixture(scope="module")
def captions() -> list[str | None]:
    return real_captions(2000)


@pytest.fixture(scope="module")
def table(captions: list[str | None], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(tmp_path_factory.mktemp("table") / "pool", captions)


ENTRIES = ["star", "flag", "face", "red", "card", "icon", "tree", "New York", "computer", "star", "(", "of"]


@pytest.mark.parametrize("kind", ["json", "text"])
def test_metaclip_equals_its_definition(captions: list[str | None], table: str, kind: str, tmp_path: Path) -> None:
    metadata = tmp_path / f"metadata.{kind}"
    metadata.write_text(
        pa.array(ENTRIES).to_pandas().to_json(orient="values") if kind == "json" else "\n".join(ENTRIES)
    )
    node = {"metadata": str(metadata), "t": 30, "seed": 7}
    found = select(table, tmp_path / "store", {"metaclip": node})
    entries = list(dict.fromkeys(ENTRIES))
    texts = [text or "" for text in spaced(pl.Series(captions, dtype=pl.String)).to_list()]
    held = [[entry for entry in entries if f" {entry} " in text] for text in texts]
    counts = {entry: sum(entry in one for one in held) for entry in entries}
    summed = next(stage.artifact for stage in found.stages if stage.artifact.kind == "entry_sums")
    assert read_counts(summed).tolist() == list(counts.values())
    uniform = (random_keys(step_seed(7, "metaclip"), np.arange(len(texts))) >> np.uint64(11)) * 2.0**-53
    chances = [1 - np.prod([1 - 30 / max(counts[entry], 30) for entry in one]) if one else 0.0 for one in held]
    assert found.ordinals() == [i for i, chance in enumerate(chances) if uniform[i] < chance]
    reasons = found.keep.artifact.totals["reasons"]
    assert reasons["no_entry"] == sum(not one for one in held)
    assert sum(reasons.values()) == len(texts) - found.keep.num_pairs
    assert reasons["balanced_out"] > 0


def test_metaclip_does_not_depend_on_parts(table: str, tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("\n".join(ENTRIES))
    node = {"metaclip": {"metadata": str(tmp_path / "m.txt"), "t": 10}}
    whole = select(table, tmp_path / "a", node).ordinals()
    assert select(table, tmp_path / "b", node, part_rows=300).ordinals() == whole


@pytest.mark.parametrize(
    ("metadata", "said"),
    [(None, "metadata is missing"), ("none.json", "no file .*none.json"), ("empty.txt", "empty.txt has no entries")],
)
def test_missing_or_malformed_metadata_is_an_error(table: str, metadata: str | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    node = {"metadata": metadata and str(tmp_path / metadata)}
    with pytest.raises(UserError, match=said):
        select(table, tmp_path / "store", {"metaclip": node})


def test_basic_drops_short_captions_and_small_images_with_reasons(tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "tars", make_pairs(40), num_shards=2)
    found = build_selection(
        config_of(
            {"format": "webdataset", "uri": uri},
            tmp_path / "store",
            selection={"steps": ["basic"], "basic": {"min_words": 3, "min_side": 34}},
        )
    )
    table = pa.concat_tables(found.catalog.table(part, ("caption", "width", "height")) for part in range(2)).to_pylist()
    passing = [
        i
        for i, row in enumerate(table)
        if len((row["caption"] or "").split()) >= 3 and min(row["width"] or 0, row["height"] or 0) >= 34
    ]
    assert found.ordinals() == passing
    assert sum(found.keep.artifact.totals["reasons"].values()) == 40 - len(passing)


def test_clip_score_by_budget_and_by_threshold(tmp_path: Path) -> None:
    vectors = blobs(80, 8, 4)
    pool = write_pool(tmp_path, list(vectors))
    texts = blobs(80, 8, 4, seed=9)
    columns = pq.read_table(pool.vectors)
    numbers = [int(key[1:]) for key in columns["key"].to_pylist()]
    pq.write_table(columns.append_column("text", pa.array([texts[i].tolist() for i in numbers])), pool.vectors)

    def ordinals(**node: Any) -> list[int]:
        return build_selection(
            config_of(
                {"format": "table", "uri": str(pool.table), "key_column": "key", "part_rows": 30},
                pool.store,
                embedding={"mine": {"kind": "columns", "uri": str(pool.vectors), "text_column": "text"}},
                selection={"steps": ["clip_score"], "clip_score": {"embedding": "mine", **node}},
            )
        ).ordinals()

    scores = (vectors * texts).sum(axis=1)
    assert ordinals(keep_fraction=0.25) == sorted(np.argsort(-scores, kind="stable")[:20].tolist())
    threshold = float(np.sort(scores)[40:42].mean())
    assert ordinals(threshold=threshold) == np.flatnonzero(scores >= threshold).tolist()
