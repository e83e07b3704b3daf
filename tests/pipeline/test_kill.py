"""Killed with SIGKILL while it scores, and started again: only what was not committed is done again."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.commands import run_process
from tests.support.pools import real_captions, write_table
from tests.support.processes import kill, started, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def finished_parts(folder: Path, kind: str) -> dict[Path, int]:
    """Every finished part's files, with the time they were written."""
    marks = list((folder / "STORE" / kind).glob("*/parts/*.json"))
    files = [path for mark in marks for path in mark.parent.glob(f"{mark.stem}.*")]
    return {path: path.stat().st_mtime_ns for path in files if not path.name.endswith(".tmp")}


def test_killed_while_scoring(forked_workers: dict[str, str], tmp_path: Path) -> None:
    captions = real_captions(1500) * 2
    write_table(tmp_path / "table", captions, num_files=2)
    select = (
        "python -m orchestrator select +exp=wfpp source=table source.uri=table source.part_rows=40 "
        "selection.wfpp.keep_fraction=0.5 cluster.scoring_actors=1 "
    )
    with started(f"{select} out=OUT store=STORE", tmp_path, forked_workers) as process:
        wait_for(lambda: len(finished_parts(tmp_path, "scores")) >= 5, process)
        kill(process)
    before = finished_parts(tmp_path, "scores")
    assert not list((tmp_path / "STORE" / "scores").glob("*/manifest.json")), "killed in the middle"
    others = {kind: finished_parts(tmp_path, kind) for kind in ("catalog", "word_counts", "words")}
    assert all(others.values())
    done = run_process(f"{select} out=OUT store=STORE", cwd=tmp_path, env=forked_workers)
    assert done.returncode == 0, done.stderr
    after = finished_parts(tmp_path, "scores")
    assert len(after) > len(before)
    assert {path: after[path] for path in before} == before, "what was committed was not done again"
    for kind, parts in others.items():
        assert {path: path.stat().st_mtime_ns for path in parts} == parts, kind
    whole = run_process(
        f"{select.replace('part_rows=40', 'part_rows=100000')} out=WHOLE store=STORE2 && "
        "python -m orchestrator export run=WHOLE to=whole.parquet && "
        "python -m orchestrator export run=OUT to=kept.parquet",
        cwd=tmp_path,
        env=forked_workers,
    )
    assert whole.returncode == 0, whole.stderr
    assert pq.read_table(tmp_path / "kept.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))
