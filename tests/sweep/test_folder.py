"""The folder of a sweep: other settings are refused, what stays on resume, and the time over all starts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config
from orchestrator.engine.console import Display
from orchestrator.errors import UserError
from orchestrator.sweep.elapsed import SweepTimer
from orchestrator.sweep.folder import check_folder, claim_folder
from orchestrator.sweep.report.schema import SharedStage
from tests.support.pools import config_of


def config(out: Path, *, resume: bool = False, **groups: Any) -> Config:
    made = config_of({"format": "table", "uri": "captions"}, out.parent / "store", **groups)
    return made.model_copy(update={"out": str(out), "resume": resume})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a finished sweep."""
    folder = tmp_path / "OUT"
    claim_folder(config(folder), Display())
    (folder / "trials" / "one").mkdir(parents=True)
    for name in ("sweep.json", "sweep.html", "spent.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_sweep_with_other_settings_is_refused_and_its_trials_stay(out: Path) -> None:
    other = {"training": {"lr": 0.5}, "selection": {"steps": ["wfpp"], "wfpp": {"t": 0.5}}}
    with pytest.raises(UserError, match=r"has other settings of selection.wfpp.t, training.lr; set them to its values"):
        check_folder(config(out, resume=True, **other))
    with pytest.raises(UserError, match=r"has the trials of a sweep with other settings of .*; set another out="):
        check_folder(config(out, **other))
    (out / "trials" / "one").rmdir()
    check_folder(config(out, **other))


def test_settings_without_effect_on_the_results_may_differ(out: Path) -> None:
    sweep = {"max_concurrent": 1, "max_failures": 3}
    check_folder(config(out, resume=True, sweep=sweep, training={"num_workers": 1}, cluster={"num_cpus": 9}))


def test_a_restart_explains_resume_and_removes_earlier_results(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_folder(config(out))
    claim_folder(config(out), Display())
    assert f"restarting the trials in {out}; pass resume=true to continue them" in capsys.readouterr().out
    assert [file.name for file in out.iterdir()] == ["config.json"]


def test_a_resumed_sweep_keeps_its_trials_but_no_page(out: Path) -> None:
    claim_folder(config(out, resume=True), Display())
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "spent.json", "trials"]


def test_elapsed_time_and_computed_stages_add_up_over_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sweep.elapsed.WRITE_SECONDS", 0.01)
    now = SharedStage(kind="keep", needed=4, distinct=3, computed=1, seconds=1.5)
    first = SweepTimer(str(tmp_path), resume=False)
    with first.recording(lambda: [now]):
        while not (tmp_path / "spent.json").exists():
            time.sleep(0.01)
    noted = json.loads((tmp_path / "spent.json").read_text())
    noted["wall_seconds"] = 100.0
    (tmp_path / "spent.json").write_text(json.dumps(noted))
    again = SweepTimer(str(tmp_path), resume=True)
    with again.recording(lambda: [now.model_copy(update={"computed": 2, "seconds": 2.0})]):
        pass
    (shared,), elapsed = again.shared(), again.elapsed()
    assert (shared.needed, shared.distinct, shared.computed, shared.seconds) == (4, 3, 3, 3.5)
    assert (elapsed.started, elapsed.resumed) == (noted["started"], 1)
    assert 100 <= elapsed.wall_seconds < 110
    assert SweepTimer(str(tmp_path), resume=False).elapsed().resumed == 0
