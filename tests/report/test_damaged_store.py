"""The report of a run with one damaged file in its store: one line that names the file, or the whole report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.engine import artifact, process_cache
from orchestrator.engine.run_record import RunRecord
from orchestrator.errors import mistake_in, one_line
from orchestrator.report.write import build_report
from orchestrator.storage.files import StoreError


def refusal(record: RunRecord, whole: str) -> str | None:
    """Return the line that a report ends with; None if its JSON is `whole`."""
    try:
        report = built(record)
    except Exception as error:
        mistake = mistake_in(error)
        if not isinstance(mistake, StoreError):
            raise
        return one_line(mistake)
    assert report == whole, "a damaged file is read and the report is wrong"
    return None


def built(record: RunRecord) -> str:
    """Build the report as a new process does; return its JSON."""
    process_cache.clear_all()
    artifact._manifest.cache_clear()
    return build_report(record).model_dump_json()


def files_to_damage(folder: Path) -> list[Path]:
    """Return the files of an artifact: of its parts, the first one."""
    return [
        path for path in sorted(folder.rglob("*.*")) if path.parent.name != "parts" or path.stem.startswith("000000")
    ]


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
    whole, named = built(record), set[str]()
    for path in (path for folder in sorted(tmp_path.iterdir()) for path in files_to_damage(folder)):
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
