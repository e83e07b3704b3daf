"""A mistake in each input of each verb is one line with exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.pipeline.test_bad_input import refused
from tests.support.commands import Shell
from tests.support.pools import make_pairs, write_tars

SELECT = "python -m orchestrator select +exp=wfpp selection.wfpp.min_count=2 source.uri=pool store=STORE"


@pytest.fixture(scope="module")
def place(run_command: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished selection `OUT`, and broken copies of its record and its store."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_tars(folder / "pool", make_pairs(60), num_shards=2)
    done = run_command(f"{SELECT} out=OUT", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "file.txt").write_text("hello")
    (folder / "empty").mkdir()
    pl.DataFrame({"key": ["other"]}).write_parquet(folder / "other.parquet")
    record = (folder / "OUT" / "run.json").read_text()
    stores = {name: str(folder / name.upper()) for name in ("gone", "cut", "empty_catalog", "cut_bits")}
    for name, pattern, num_bytes in (
        ("cut", "manifest.json", 9),
        ("empty_catalog", "catalog/*/parts/*.parquet", 0),
        ("cut_bits", "keep/*/parts/*.bits", 1),
    ):
        shutil.copytree(folder / "STORE", stores[name])
        for path in Path(stores[name]).rglob(pattern):
            path.write_bytes(path.read_bytes()[:num_bytes])
    for name, text in {
        "torn": record[:100],
        "list": "[]",
        **{name: record.replace(str(folder / "STORE"), store) for name, store in stores.items()},
    }.items():
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(text)
    return folder


@pytest.mark.parametrize("verb", ["report", "export to=kept.parquet"])
@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("nowhere", "no finished run at"),
        ("file.txt", "no finished run at"),
        ("empty", "expected run.json in it"),
        ("pool", "no finished run at"),
        ("torn", "expected the record of a run"),
        ("list", "expected the record of a run"),
        ("gone", "manifest.json; expected the store of the run, unchanged"),
        ("cut", "manifest.json is damaged (expected JSON"),
        ("empty_catalog", "00000.parquet is damaged ("),
        ("cut_bits", "0.bits is damaged (got 1 bytes, expected 4 for 30 pairs); remove the folder"),
    ],
)
def test_a_folder_that_is_no_finished_run(run_command: Shell, place: Path, verb: str, run: str, said: str) -> None:
    refused(run_command(f"python -m orchestrator {verb} run={run}", cwd=place), said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("store=file.txt", "cannot write"),
        ("store=EMPTY_CATALOG selection.wfpp.keep_fraction=0.3 selection.wfpp.min_count=3", "00.parquet is damaged ("),
        ("selection.steps=keep_list selection.keep_list.uri=other.parquet", "the pool lacks 1 of the 1 pairs"),
        (
            "selection.steps=keep_list selection.keep_list.uri=other.parquet selection.keep_list.max_missing=1",
            "the selection keeps none of the pairs; the report in",
        ),
        ("selection.wfpp.keep_fraction=0.001", "keeps none of the"),
        ("selection.steps=basic selection.basic.language_model=file.txt", "language_model="),
        ("selection.steps=basic selection.basic.language_model=nowhere", "language_model: no such file nowhere"),
    ],
)
def test_a_selection_with_a_wrong_input(run_command: Shell, place: Path, settings: str, said: str) -> None:
    refused(run_command(f"{SELECT} out=OUT2 {settings}", cwd=place), said)
