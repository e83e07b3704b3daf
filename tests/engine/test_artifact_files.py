"""Every reader of artifacts names the damaged file and the folder to remove, whatever the damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.data.catalog import read_columns, to_parquet
from orchestrator.engine import shuffle
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import checked, open_rows, read_json, read_json_lines, read_npy, read_parquet
from orchestrator.engine.parts import done_summaries
from orchestrator.engine.stopwatch import Stopwatch
from orchestrator.storage.files import StoreError
from orchestrator.storage.npy import to_npy

TABLE = pa.table({"a": list(range(1000)), "b": [str(number * 7919) for number in range(1000)]})
VECTORS = np.arange(3000, dtype=np.float32).reshape(1000, 3)


def artifact_of(uri: str) -> Artifact:
    return Artifact("kind", uri.removesuffix("/").split("/parts/")[0], {})


READERS: dict[str, tuple[bytes, Callable[[str], Any]]] = {
    "a.npy": (to_npy(VECTORS), lambda uri: read_npy(uri).tolist()),
    "rows.npy": (to_npy(VECTORS), lambda uri: open_rows(uri).take(np.array([2, 900])).tolist()),
    "a.parquet": (to_parquet(TABLE), lambda uri: read_parquet(uri).to_pydict()),
    "columns.parquet": (to_parquet(TABLE), lambda uri: read_columns(uri, ("b",)).to_pydict()),
    "slice.exchange": (shuffle.pack([TABLE, TABLE]), lambda uri: shuffle.read_slice(uri, 1)),
    "slices.exchange": (shuffle.pack([TABLE, TABLE]), lambda uri: list(shuffle.read_slices(uri))),
    "gathered.exchange": (shuffle.pack([TABLE, TABLE]), lambda uri: list(shuffle.gather([uri], 1))),
    "000000.json": (json.dumps({"index": 0, "rows": 3}).encode(), lambda uri: done_summaries(artifact_of(uri))),
    "value.json": (json.dumps({"loss": 1.5}).encode(), read_json),
    "a.jsonl": (b'{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4, "samples_seen": 128}\n', read_json_lines),
}


@pytest.mark.parametrize("damage", ["empty", "half", "nearly whole", "text", "missing"])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line_that_says_what_to_remove(name: str, damage: str, tmp_path: Path) -> None:
    data, read = READERS[name]
    path = tmp_path / "STORE" / "kind" / "f00d" / "parts" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    whole = read(str(path))
    assert whole
    if damage == "missing":
        path.unlink()
    else:
        cuts = {"empty": 0, "half": len(data) // 2, "nearly whole": len(data) - 2}
        path.write_bytes(b"<html>404" * 100 if damage == "text" else data[: cuts[damage]])
    read_columns.cache_clear()
    if (name, damage) == ("000000.json", "missing"):
        assert read(str(path)) == {}, "a part without a summary is made again"
        return
    with pytest.raises(StoreError) as raised:
        read(str(path))
    message = str(raised.value)
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith(f"; remove the folder {tmp_path}/STORE/kind/f00d and repeat the run that made it")
    assert "\n" not in message


def test_files_beside_the_parts_name_the_same_folder(tmp_path: Path) -> None:
    artifact = Artifact("kind", str(tmp_path / "f00d"), {})
    (tmp_path / "f00d").mkdir()
    (tmp_path / "f00d" / "elapsed.json").write_text("")
    with pytest.raises(StoreError, match=rf"elapsed\.json is damaged .*remove the folder {tmp_path}/f00d and"):
        Stopwatch(artifact)
    (tmp_path / "f00d" / "manifest.json").write_text('{"totals": ')
    with pytest.raises(StoreError, match=rf"manifest\.json is damaged \(expected JSON.*folder {tmp_path}/f00d and"):
        assert artifact.totals


def test_errors_of_the_storage_keep_their_message() -> None:
    for error in (StoreError("the bucket does not answer"), PermissionError(13, "Permission denied", "file")):
        with pytest.raises(type(error)) as raised, checked("file"):
            raise error
        assert raised.value is error
