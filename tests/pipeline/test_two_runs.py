"""Two commands over one pool and one store at the same time."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.engine.run_record import RunRecord
from tests.support.commands import environment
from tests.support.pools import real_captions, write_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SELECT = (
    "python -m orchestrator select +exp=wfpp source=table source.uri=table source.part_rows=200 "
    "selection.wfpp.keep_fraction=0.5 store=STORE"
)


def test_each_stage_is_computed_once_and_both_have_it(forked_workers: dict[str, str], tmp_path: Path) -> None:
    write_table(tmp_path / "table", real_captions(2000), num_files=2)
    runs = [
        subprocess.Popen(
            ["sh", "-c", f"umask 002; {SELECT} out={name}"],
            cwd=tmp_path,
            env=environment(**forked_workers),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("A", "B")
    ]
    said = [run.communicate(timeout=500)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    records = [RunRecord.read(str(tmp_path / name)) for name in ("A", "B")]
    stages = [stage for record in records for stage in record.stages]
    # one keep list, which both have
    assert Counter(stage.uri for stage in stages) == Counter(2 * [stage.uri for stage in records[0].stages])
    computed = Counter(stage.uri for stage in stages if not stage.reused)
    assert set(computed) == {stage.uri for stage in stages}
    assert set(computed.values()) == {1}, computed
    assert not list((tmp_path / "STORE").rglob("lease.json"))
    assert os.stat(tmp_path / "STORE").st_mode & 0o020, "the group may write there"
