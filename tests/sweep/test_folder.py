"""Whose the folder of a sweep is, what stays there, and what the sweep took over all its starts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config
from orchestrator.engine.console import Display
from orchestrator.errors import UserError
from orchestrator.sweep.elapsed import Tally
from orchestrator.sweep.folder import check_folder, claim_folder
from orchestrator.sweep.schema import SharedStage
from tests.support.pools import config_of


def config(out: Path, *, resume: bool = False, **groups: Any) -> Config:
    made = config_of({"format": "table", "uri": "captions"}, out.parent / "store", **groups)
    return made.model_copy(update={"out": str(out), "resume": resume})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a sweep that ended."""
    folder = tmp_path / "OUT"
    claim_folder(config(folder), Display())
    (folder / "trials" / "one").mkdir(parents=True)
    for name in ("sweep.json", "sweep.html", "spent.json"):
        (folder / name).write_text("{}")
    return folder


def test_other_settings_are_named_and_nothing_is_lost(out: Path) -> None:
    other = {"training": {"lr": 0.5}, "selection": {"steps": ["wfpp"], "wfpp": {"t": 0.5}}}
    with pytest.raises(UserError, match=r"had other settings of selection.wfpp.t, training.lr; give those again"):
        check_folder(config(out, resume=True, **other))
    with pytest.raises(UserError, match=r"has the trials of a sweep with other settings of .*; give another out="):
        check_folder(config(out, **other))
    (out / "trials" / "one").rmdir()
    check_folder(config(out, **other))


def test_how_it_runs_may_differ(out: Path) -> None:
    sweep = {"max_concurrent": 1, "max_failures": 3}
    check_folder(config(out, resume=True, sweep=sweep, training={"num_workers": 1}, cluster={"num_cpus": 9}))


def test_a_new_start_says_how_to_go_on_and_leaves_nothing_stale(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_folder(config(out))
    claim_folder(config(out), Display())
    assert "resume=true goes on with them" in capsys.readouterr().out
    assert [file.name for file in out.iterdir()] == ["config.json"]


def test_a_resumed_one_keeps_its_trials_but_no_page(out: Path) -> None:
    claim_folder(config(out, resume=True), Display())
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "spent.json", "trials"]


def test_what_was_spent_before_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sweep.elapsed.NOTE_SECONDS", 0.01)
    now = SharedStage(kind="keep", needed=4, distinct=3, computed=1, seconds=1.5)
    first = Tally(str(tmp_path), resume=False)
    with first.noted(lambda: [now]):
        while not (tmp_path / "spent.json").exists():
            time.sleep(0.01)
    noted = json.loads((tmp_path / "spent.json").read_text())
    noted["wall_seconds"] = 100.0
    (tmp_path / "spent.json").write_text(json.dumps(noted))
    again = Tally(str(tmp_path), resume=True)
    with again.noted(lambda: [now.model_copy(update={"computed": 2, "seconds": 2.0})]):
        pass
    (shared,), spent = again.shared(), again.spent()
    assert (shared.needed, shared.distinct, shared.computed, shared.seconds) == (4, 3, 3, 3.5)
    assert (spent.started, spent.resumed) == (noted["started"], 1)
    assert 100 <= spent.wall_seconds < 110
    assert Tally(str(tmp_path), resume=False).spent().resumed == 0
