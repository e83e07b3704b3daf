"""The state of a trial: its writers, kills between any two writes, and folders of version 0.1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import WorkerCrashedError

from orchestrator.errors import UserError
from orchestrator.report.schema import PhaseReport, Report
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.sweep import trial_worker
from orchestrator.sweep.report.results import trial_result
from orchestrator.sweep.state import TrialState, ended_state, fail, read_state, retry_failed, write_state
from orchestrator.sweep.trial_worker import run_trial
from orchestrator.sweep.trials import Trial, TrialJob
from orchestrator.sweep.tuner import Search, _TrialEnds

SETTINGS = {"kept": 0.5}
# contents of marker files in the form of version 0.1
OLD_STOPPED = {"samples_seen": 576, "seconds": 18.28, "value": 0.0625}
OLD_FAILURE = {"final": False, "reason": "RuntimeError: not enough memory: you tried to allocate 640000000000 bytes."}


class Killed(BaseException):
    """The process ends here."""


class QuietBoard:
    """Takes any message and does nothing."""

    def __getattr__(self, name: str) -> QuietBoard:
        return self

    def remote(self, *arguments: Any) -> None:
        """Take a message."""


def report() -> bytes:
    phase = PhaseReport(pairs=12, epochs=3, samples_seen=36, steps=9, loss=1.0, num_workers=1, curve=[])
    whole: dict[str, Any] = {
        "name": "n",
        "verb": "run",
        "started": "",
        "wall_seconds": 1.0,
        "config": {},
        "funnel": [{"name": "pool", "what": "", "pairs": 24}],
        "training": {"pretrain": phase},
        "stages": [
            {"name": "pretrain", "seconds": 4.0, "computed_seconds": 4.0, "reused": False},
        ],
        "fingerprints": {},
        "versions": {},
    }
    return Report(**whole).model_dump_json().encode()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialJob:
    """A trial with a pipeline that does nothing but write the report."""
    config: Any = SimpleNamespace(out=str(tmp_path / "trial"), cluster=None)
    monkeypatch.setattr(trial_worker.ray_cluster, "connect", lambda _: None)
    monkeypatch.setattr(trial_worker, "planned", lambda config: config)
    pipeline_does(monkeypatch, lambda out: files.write(files.join(out, "report.json"), report()))
    return TrialJob(name="one", settings=SETTINGS, config=config, metric="zero_shot/top1", num_samples=36)


def pipeline_does(monkeypatch: pytest.MonkeyPatch, work: Callable[[str], None]) -> None:
    monkeypatch.setattr(trial_worker, "execute", lambda config, verb, display, checks_inputs: work(config.out))


def run(job: TrialJob) -> dict[str, float]:
    return run_trial(job, QuietBoard(), lambda record: None)


def result_of(out: str, error: BaseException | None = None) -> Any:
    config: Any = SimpleNamespace(out=out, sweep=SimpleNamespace(metric="zero_shot/top1"))
    pipeline: Any = None
    return trial_result(Trial(name="one", settings=SETTINGS, seed=0, config=config, pipeline=pipeline), error)


def test_a_finished_trial_has_its_report_and_one_state_file(job: TrialJob) -> None:
    assert run(job)["samples_seen"] == 36
    assert sorted(file.name for file in Path(job.out).iterdir()) == ["report.json", "trial.json"]
    assert read_state(job.out) == TrialState(state="finished", settings=SETTINGS)
    assert ended_state(job.out) == "finished"
    result = result_of(job.out)
    assert (result.state, result.pairs, result.kept_fraction) == ("finished", 12, 0.5)
    assert (result.models["pretrain"].samples_seen, result.models["pretrain"].training_seconds) == (36, 4.0)


def kill_before(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Kill the process before its `nth` change of a file, counted from 0."""
    changes = 0
    whole: dict[str, Callable[..., None]] = {"write": files.write, "remove": files.remove}

    def change(name: str, *arguments: Any) -> None:
        nonlocal changes
        if changes == nth:
            raise Killed
        changes += 1
        whole[name](*arguments)

    monkeypatch.setattr(files, "write", lambda *arguments: change("write", *arguments))
    monkeypatch.setattr(files, "remove", lambda *arguments: change("remove", *arguments))


def prepare(out: str, before: str) -> None:
    """Write what an earlier start of the sweep left in the trial's folder."""
    if before == "failed":
        fail(out, SETTINGS, ValueError("no luck"))
    if before == "finished by version 0.1":
        write_old(out, {"report.json": json.loads(report())})
    if before == "failed in version 0.1":
        write_old(out, {"failure.json": OLD_FAILURE})


@pytest.mark.parametrize("before", ["nothing", "failed", "finished by version 0.1", "failed in version 0.1"])
def test_a_kill_between_any_two_writes_leaves_a_trial_that_runs_again(
    job: TrialJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str
) -> None:
    num_kills = 0
    for nth in range(100):
        out: Any = str(tmp_path / f"killed-{nth}")
        vars(job.config)["out"] = out
        prepare(out, before)
        with monkeypatch.context() as patch:
            kill_before(patch, nth)
            try:
                run(job)
                break
            except Killed:
                num_kills += 1
        if nth:
            # before the first write the earlier attempt still counts
            assert read_state(out) == TrialState(state="running", settings=SETTINGS)
            assert ended_state(out) is None
            assert result_of(out, WorkerCrashedError()).state == "failed"
        run(job)
        assert ended_state(out) == "finished"
        assert sorted(files.names(out)) == ["report.json", "trial.json"]
    assert num_kills == 8, "two states, the report, and five files that are removed"


def test_a_failed_trial_keeps_its_reason_and_runs_again_on_resume(
    job: TrialJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(out: str) -> None:
        raise UserError("more clusters than pairs")

    pipeline_does(monkeypatch, refuse)
    with pytest.raises(UserError):
        run(job)
    failed = TrialState(state="failed", settings=SETTINGS, reason="more clusters than pairs", is_final=True)
    assert read_state(job.out) == failed
    assert result_of(job.out).reason == "more clusters than pairs"
    pipeline_does(monkeypatch, lambda out: pytest.fail("a retry cannot help"))
    with pytest.raises(UserError, match="more clusters than pairs"):
        run(job)
    assert read_state(job.out) == failed
    retry_failed(job.out)
    assert read_state(job.out) == TrialState(state="waiting", settings=SETTINGS)
    pipeline_does(monkeypatch, lambda out: files.write(files.join(out, "report.json"), report()))
    run(job)
    assert ended_state(job.out) == "finished"


@pytest.mark.parametrize("error", [MemoryError("no room"), StoreError("the disk is full")])
def test_other_errors_are_retried(job: TrialJob, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fall(out: str) -> None:
        raise error

    pipeline_does(monkeypatch, fall)
    with pytest.raises(type(error)):
        run(job)
    state = read_state(job.out)
    assert state is not None
    assert (state.state, state.is_final) == ("failed", False)
    pipeline_does(monkeypatch, lambda out: files.write(files.join(out, "report.json"), report()))
    run(job)
    assert ended_state(job.out) == "finished"


def test_a_killed_process_has_the_reason_that_ray_gives(job: TrialJob) -> None:
    write_state(job.out, TrialState(state="running", settings=SETTINGS))
    assert result_of(job.out, WorkerCrashedError()).reason.startswith("WorkerCrashedError: ")
    assert result_of(job.out).reason == "it never ran"


def stop(job: TrialJob) -> None:
    """End a trial as ASHA does, after 20 of its 36 samples."""
    ends = _TrialEnds(Search(name="trials", config=job.config, board=QuietBoard(), jobs={job.name: job}))
    last = {"samples_seen": 20, "zero_shot/top1": 0.125, "time_total_s": 3.456, "trial_id": "a"}
    ends.on_trial_complete(1, [], SimpleNamespace(config={"trial": job.name}, last_result=last))


@pytest.fixture
def board_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sweep.tuner.ray.get", lambda reference: reference)


@pytest.mark.usefixtures("board_answers")
def test_a_stopped_trial_stays_stopped_when_its_process_ends(job: TrialJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_in_training(out: str) -> None:
        stop(job)
        raise RuntimeError("the actor of the trial is gone")

    pipeline_does(monkeypatch, stopped_in_training)
    with pytest.raises(RuntimeError):
        run(job)
    assert ended_state(job.out) == "stopped"
    result = result_of(job.out)
    assert result.reason == "others were better after 20 samples, where zero_shot/top1 was 12.5%"
    assert (result.models["pretrain"].training_seconds, result.settings) == (3.46, SETTINGS)


@pytest.mark.usefixtures("board_answers")
def test_a_finished_trial_is_not_stopped(job: TrialJob) -> None:
    run(job)
    stop(job)
    assert ended_state(job.out) == "finished"


def write_old(out: str, markers: dict[str, Any]) -> None:
    """Write a trial's folder as version 0.1 did."""
    for name, content in {"settings.json": SETTINGS, **markers}.items():
        files.write_json(files.join(out, name), content)


@pytest.mark.parametrize(
    ("markers", "expected"),
    [
        ({}, TrialState(state="running", settings=SETTINGS)),
        ({"report.json": {}}, TrialState(state="finished", settings=SETTINGS)),
        ({"report.json": {}, "stopped.json": OLD_STOPPED}, TrialState(state="finished", settings=SETTINGS)),
        ({"stopped.json": OLD_STOPPED}, TrialState(state="stopped", settings=SETTINGS, **OLD_STOPPED)),
        (
            {"stopped.json": OLD_STOPPED, "failure.json": OLD_FAILURE},
            TrialState(state="stopped", settings=SETTINGS, **OLD_STOPPED),
        ),
        (
            {"failure.json": OLD_FAILURE},
            TrialState(state="failed", settings=SETTINGS, reason=OLD_FAILURE["reason"], is_final=False),
        ),
        (
            {"failure.json": {"final": True, "reason": "a mistake"}},
            TrialState(state="failed", settings=SETTINGS, reason="a mistake", is_final=True),
        ),
    ],
)
def test_folders_of_version_0_1_are_read(tmp_path: Path, markers: dict[str, Any], expected: TrialState) -> None:
    write_old(str(tmp_path), markers)
    assert read_state(str(tmp_path)) == expected


def test_a_trial_of_version_0_1_that_runs_again_has_one_state_file(job: TrialJob) -> None:
    write_old(job.out, {"failure.json": {"final": True, "reason": "a mistake"}})
    retry_failed(job.out)
    run(job)
    assert sorted(file.name for file in Path(job.out).iterdir()) == ["report.json", "trial.json"]


def test_a_folder_without_files_has_no_state(tmp_path: Path) -> None:
    assert read_state(str(tmp_path)) is None
    assert ended_state(str(tmp_path / "missing")) is None


@pytest.mark.parametrize("content", ['{"state": "paused"}', "{", '{"state": "running", "rung": 3}'])
def test_an_unreadable_state_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "trial.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot read .*trial.json: expected .*; remove the folder .* to run") as error:
        read_state(str(tmp_path))
    assert "\n" not in str(error.value)
