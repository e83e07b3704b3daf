"""DataComp's basic filter goes by the size of the image on the web, and by the stored size where that is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestrator.errors import UserError
from tests.support.pools import Selected, build_selection, config_of
from tests.support.shard_files import picture, write_sidecar, write_tar

pytestmark = pytest.mark.usefixtures("ray_cluster")
CAPTION = "a caption of words"


def select(source: dict[str, Any], store: Path, **settings: Any) -> Selected:
    return build_selection(config_of(source, store, selection={"steps": ["basic"], "basic": settings}))


def test_the_size_before_the_resize_of_img2dataset(tmp_path: Path) -> None:
    sizes = {"elongated": (1024, 250), "small": (199, 300), "good": (900, 600), "unknown": (None, None)}
    entries = [(f"{key}.jpg", picture(1, width=256, height=256)) for key in sizes]
    write_tar(tmp_path / "00000.tar", entries)
    rows = [
        {
            "key": key,
            "status": "success",
            "caption": CAPTION,
            "width": 256,
            "height": 256,
            "original_width": width,
            "original_height": height,
        }
        for key, (width, height) in sizes.items()
    ]
    write_sidecar(tmp_path / "00000.parquet", rows)
    found = select({"format": "webdataset", "uri": str(tmp_path)}, tmp_path / "store")
    assert found.ordinals() == [2, 3]
    totals = found.keep.artifact.totals
    assert totals["reasons"]["too_elongated"] == totals["reasons"]["image_too_small"] == 1
    assert totals["sizes"] == {"original": 3, "stored": 1}


def test_metadata_with_original_sizes_alone(tmp_path: Path) -> None:
    pl.DataFrame(
        {"uid": ["x", "y"], "text": [CAPTION] * 2, "original_width": [640, 640], "original_height": [480, 100]}
    ).write_parquet(tmp_path / "0.parquet")
    source = {"format": "table", "uri": str(tmp_path / "0.parquet"), "caption_column": "text"}
    found = select(source, tmp_path / "store")
    assert found.ordinals() == [0]
    assert found.keep.artifact.totals["sizes"] == {"original": 2, "stored": 0}


def test_json_members_have_it_too(tmp_path: Path) -> None:
    fields = {"caption": CAPTION, "width": 256, "height": 256, "original_width": 1024, "original_height": 150}
    entries = [("a.jpg", picture(1, width=256, height=256)), ("a.json", json.dumps(fields).encode())]
    entries += [("b.jpg", picture(2, width=256, height=256)), ("b.txt", CAPTION.encode())]
    write_tar(tmp_path / "00000.tar", entries)
    assert select({"format": "webdataset", "uri": str(tmp_path)}, tmp_path / "store").ordinals() == [1]


def test_a_pool_without_any_size_is_an_error(tmp_path: Path) -> None:
    pl.DataFrame({"caption": [CAPTION] * 3}).write_parquet(tmp_path / "0.parquet")
    source = {"format": "table", "uri": str(tmp_path / "0.parquet")}
    with pytest.raises(UserError, match=r"selection.basic: none of the 3 pairs has a size; expected width and height"):
        select(source, tmp_path / "store")
