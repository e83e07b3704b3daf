"""Whole sweeps as processes: killed and resumed, with trials that fail, stop early or are suggested; and mistakes in a
command, each reported in one line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestrator.cli import main
from orchestrator.sweep.report.schema import SweepReport
from orchestrator.sweep.state import read_state
from tests.support.commands import Shell
from tests.support.pools import write_zero_shot
from tests.support.processes import kill, started, wait_for

METRIC = "sweep.metric=zero_shot/top1"
PLAIN = "finetune.enabled=false training.num_workers=1 out=OUT store=STORE"
# an embedding table of 640 GB
TOO_LARGE = 10_000_000_000


def command_of(tiny_conf: str, pool: str, space: dict[str, Any], *overrides: str) -> str:
    given = [f"sweep.space={json.dumps(space)}".replace('"', ""), *overrides]
    return (
        f"python -m orchestrator sweep {tiny_conf} source.uri={pool} evaluation.zero_shot.uri=zs.tar {METRIC} {PLAIN} "
        f"{' '.join(map(shlex.quote, given))}"
    )


def report_of(folder: Path) -> SweepReport:
    return SweepReport.model_validate_json((folder / "OUT" / "sweep.json").read_text())


def is_finished(folder: Path) -> bool:
    state = read_state(str(folder))
    return state is not None and state.state == "finished"


def states(report: SweepReport) -> dict[str, str]:
    return {trial.name: trial.state for trial in report.trials}


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_a_trial_without_memory_harms_no_other(
    run_process: Shell, forked_workers: dict[str, str], tiny_conf: str, tar_pool: str, tmp_path: Path
) -> None:
    write_zero_shot(tmp_path)
    space = {"vocabulary": {"keys": "model.config.text_cfg.vocab_size", "grid": [49_408, TOO_LARGE]}}
    command = command_of(tiny_conf, tar_pool, space, "sweep.controls.random=false", "sweep.max_failures=0")
    first = tmp_path / "OUT" / "trials" / "vocabulary-49408_seed-0" / "report.json"
    with started(command, tmp_path, forked_workers) as process:
        wait_for(lambda: is_finished(first.parent), process)
        kill(process)
    assert not (tmp_path / "OUT" / "sweep.json").exists()
    written = first.stat().st_mtime_ns
    done = run_process(f"{command} resume=true", cwd=tmp_path, env=forked_workers)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == written, "a finished trial is not run again"
    report = report_of(tmp_path)
    failed = f"vocabulary-{TOO_LARGE}_seed-0"
    assert states(report) == {first.parent.name: "finished", failed: "failed", "full_seed-0": "finished"}
    reason = next(trial.reason for trial in report.trials if trial.name == failed)
    assert reason is not None
    assert "memory" in reason
    assert f"{failed} failed: {reason}" in done.stdout
    assert all(stage.computed == stage.distinct for stage in report.sharing), "each once over both starts"
    assert report.resumed == 1
    catalog = next(stage for stage in report.sharing if stage.kind == "catalog")
    assert (catalog.needed, catalog.distinct) == (3, 1)
    table = pl.read_parquet(tmp_path / "OUT" / "sweep.parquet")
    assert table.filter(pl.col("state") == "finished")["zero_shot/top1"].is_not_null().all()
    assert failed in (tmp_path / "OUT" / "sweep.html").read_text()
    log = (tmp_path / "OUT" / "run.log").read_text()
    assert f"{first.parent.name}: already finished" in log
    assert f"{failed}: failed: {reason}" in log
    assert "finished" in (first.parent / "run.log").read_text()
    assert "Traceback" in (first.parent.parent / failed / "run.log").read_text()


@pytest.mark.slow
def test_hopeless_trials_are_stopped_early_but_no_control(
    run_process: Shell, forked_workers: dict[str, str], tiny_conf: str, tar_pool: str, tmp_path: Path
) -> None:
    write_zero_shot(tmp_path)
    space = {"training.lr": {"grid": [1e-3, 1e-9]}}
    budget = [
        "sweep.samples=1152",
        "sweep.early_stopping=asha",
        "sweep.asha.grace_fraction=0.5",
        "sweep.max_concurrent=1",
    ]
    command = command_of(tiny_conf, tar_pool, space, *budget, "sweep.controls.random=false")
    done = run_process(command, cwd=tmp_path, env=forked_workers)
    assert done.returncode == 0, done.stderr
    report = report_of(tmp_path)
    found = states(report)
    assert found["training.lr-0.001_seed-0"] == found["full_seed-0"] == "finished"
    assert found["training.lr-1e-09_seed-0"] == "stopped"
    (row,) = pl.read_parquet(tmp_path / "OUT" / "sweep.parquet").filter(state="stopped").to_dicts()
    assert 0 < row["samples_seen"] < 1152
    assert row["training_seconds"] > 0
    assert f"where zero_shot/top1 was {row['zero_shot/top1']:.1%}" in row["reason"]
    assert "Ray's dashboard: http://" in done.stdout


@pytest.mark.slow
def test_suggested_trials_and_the_trackers(run_command: Shell, tiny_conf: str, tar_pool: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    write_zero_shot(tmp_path)
    space = {"training.lr": {"log_uniform": [1e-4, 1e-2]}}
    search = ["sweep.search=optuna", "sweep.num_samples=2", "sweep.controls={full: false, random: false}"]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("orchestrator", artifact_location=f"file://{tmp_path}/artifacts")
    tracked = ["tracking.wandb_project=clip", "tracking.wandb_mode=offline", f"tracking.mlflow_uri={uri}"]
    done = run_command(command_of(tiny_conf, tar_pool, space, *search, *tracked), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = report_of(tmp_path)
    assert [trial.state for trial in report.trials] == ["finished"] * 2
    rates = report.dimensions["training.lr"]
    assert len(rates) == 2
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    # one run of each tracker a trial, in the sweep's group, with its report
    runs = client.search_runs([experiment])
    assert {run.data.tags["group"] for run in runs} == {report.name}
    assert {float(run.data.params["training.lr"]) for run in runs} == set(rates)
    assert all("report.html" in [file.path for file in client.list_artifacts(run.info.run_id)] for run in runs)
    for trial in report.trials:
        assert list(Path(trial.out).glob("wandb/offline-run-*")), trial.name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "sweep.space is empty: pick a sweep"),
        (["sweep.space={training.learning_rate: {grid: [1]}}"], "no such key training.learning_rate"),
        (["sweep.space={training.lr: {grid: [fast]}}"], "training.lr: got 'fast', expected"),
        (
            ["sweep=keep_fraction", "sweep.metric=imagenet"],
            "sweep.metric=imagenet is never measured: expected one of zero",
        ),
        (
            ["sweep=keep_fraction", "evaluation.zero_shot.uri=null"],
            "is never measured: no evaluation set",
        ),
        (["sweep=keep_fraction", "sweep.early_stopping=asha"], "trials at equal numbers of samples: set sweep.samples"),
        (["sweep=keep_fraction", "resume=true"], "resume=true, but there is no sweep in"),
        (["sweep=keep_fractions"], "Available options in 'sweep': default, demo, eps, keep_fraction,"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    overrides: list[str], message: str, tar_pool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_zero_shot(tmp_path)
    places = [
        f"out={tmp_path / 'OUT'}",
        f"store={tmp_path / 'STORE'}",
        f"evaluation.zero_shot.uri={tmp_path / 'zs.tar'}",
    ]
    with pytest.raises(SystemExit) as left:
        main(["sweep", f"source.uri={tar_pool}", "sweep.metric=zero_shot/top1", *places, *overrides])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "OUT").exists()
