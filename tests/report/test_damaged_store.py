"""The report of a run with one damaged file in its store: one line that names the file, or the whole report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.engine import artifact, process_cache
from orchestrator.engine.run_record import RunRecord
from orchestrator.errors import mistake_in, one_line
from orchestrator.report.page import render
from orchestrator.report.thumbnails import Thumbnails
from orchestrator.report.write import build_report
from orchestrator.storage.files import StoreError


def refusal(record: RunRecord, whole: str) -> str | None:
    """Return the line that a report ends with; None if its page is `whole`."""
    try:
        page = shown(record)
    except Exception as error:
        mistake = mistake_in(error)
        if not isinstance(mistake, StoreError):
            raise
        return one_line(mistake)
    assert page == whole, "a damaged file is read and the page is wrong"
    return None


def shown(record: RunRecord) -> str:
    """Build the report as a new process does, and return its page."""
    process_cache.clear_all()
    artifact._manifest.cache_clear()
    return render(build_report(record), Thumbnails())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trained", {".parquet", ".bits", ".jsonl", ".json"}),
        ("clustered", {".parquet", ".bits", ".npy", ".exchange", ".json"}),
    ],
)
def test_every_damaged_file_is_named(
    name: str, expected: set[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    record: RunRecord = request.getfixturevalue(name)
    moved = []
    for stage in record.stages:
        uri = tmp_path / Path(stage.uri).name
        shutil.copytree(stage.uri, uri, dirs_exist_ok=True)
        moved.append(stage.model_copy(update={"uri": str(uri)}))
    record = record.model_copy(update={"stages": moved})
    whole, named = shown(record), set[str]()
    for path in sorted(tmp_path.rglob("*.*")):
        data = path.read_bytes()
        for damaged in (b"", data[: len(data) // 2]):
            if damaged == data:
                continue
            path.write_bytes(damaged)
            line = refusal(record, whole)
            if line is not None:
                folder = tmp_path / path.relative_to(tmp_path).parts[0]
                assert line.startswith(f"{path} is damaged (")
                assert f"; remove the folder {folder} and repeat the run" in line
                named.add(path.suffix)
        path.write_bytes(data)
    assert named == expected
