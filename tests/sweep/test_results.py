"""Results of trials: those that do not run, those stopped early, benchmark tasks, and the cores that they use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config, ModelConfig, SweepConfig
from orchestrator.engine import ray_cluster
from orchestrator.report.schema import Report
from orchestrator.storage import files
from orchestrator.sweep import execute
from orchestrator.sweep.board import TrialRow
from orchestrator.sweep.report.results import metrics_of, trial_result
from orchestrator.sweep.report.summary import metrics_shown
from orchestrator.sweep.state import TrialState, write_state
from orchestrator.sweep.trials import TrialPlanner, folder_name, suggested_job
from tests.support.pools import TINY_MODEL, config_of, make_pairs, write_tars, write_zero_shot

METRIC = "zero_shot/top1"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two trials, without controls, of a sweep that is resumed."""
    uri = write_tars(tmp_path / "pool", make_pairs(24), num_shards=2)
    space = {"kept": {"keys": "selection.wfpp.keep_fraction", "grid": [0.5, 0.75]}}
    controls = {"full": False, "random": False}
    made = config_of(
        {"format": "webdataset", "uri": uri},
        tmp_path / "store",
        sweep={"space": space, "metric": METRIC, "controls": controls, "seed_keys": ["training.seed"]},
        evaluation={"zero_shot": {"uri": str(write_zero_shot(tmp_path))}},
    )
    return made.model_copy(update={"out": str(tmp_path / "out"), "resume": True})


class FakeBoard:
    """Keeps the latest row of each trial."""

    def __init__(self) -> None:
        self.rows: dict[str, TrialRow] = {}
        self.update = self

    def remote(self, name: str, row: TrialRow) -> None:
        self.rows[name] = row


def test_the_board_shows_trials_that_do_not_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "num_concurrent", lambda _: 1)
    monkeypatch.setattr(execute, "run_search", lambda search: pytest.fail(f"runs {list(search.jobs)}"))
    trials, board = execute.SweepTrials(config), FakeBoard()
    stopped, failed = trials.space
    write_state(stopped.out, TrialState(state="stopped", samples_seen=5))
    trials.shared.failed[failed.name] = "no room"
    results = trials._planned("trials", trials.space, board)
    assert [(one.state, one.reason) for one in results] == [
        ("stopped", "others were better after 5 samples"),
        ("failed", "no room"),
    ]
    assert {name: row.stage for name, row in board.rows.items()} == {
        stopped.name: "already stopped",
        failed.name: "failed",
    }


def test_a_trial_without_its_report_runs_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "num_concurrent", lambda _: 1)
    run: list[str] = []
    monkeypatch.setattr(execute, "run_search", lambda search: run.extend(search.jobs) or [])
    trials = execute.SweepTrials(config)
    finished, removed = trials.space
    for trial in trials.space:
        write_state(trial.out, TrialState(state="finished", settings=trial.settings))
    monkeypatch.setattr(execute, "trial_result", lambda trial, *_, **__: trial.name)
    files.write(files.join(finished.out, "report.json"), b"{}")
    trials._planned("trials", trials.space, FakeBoard())
    assert run == [removed.name]


def test_a_stopped_trial_has_its_last_metric_and_its_cost(config: Config) -> None:
    trial = TrialPlanner(config).space_trials()[0]
    write_state(trial.out, TrialState(state="stopped", samples_seen=640, value=0.125, seconds=3.456))
    result = trial_result(trial)
    assert result.reason == "others were better after 640 samples, where zero_shot/top1 was 12.5%"
    model = result.models["pretrain"]
    assert (model.samples_seen, model.training_seconds, model.metrics) == (640, 3.46, {METRIC: 0.125})


def test_a_resumed_search_finds_each_of_its_trials_once(config: Config) -> None:
    model = ModelConfig.model_validate(TINY_MODEL)
    text = {"width": 16, "heads": 2, "context_length": 12, "vocab_size": 49408, "layers": 1}
    space = {
        "warmup": {"keys": "training.warmup_steps", "int_uniform": [1, 9]},
        "kept": {"keys": "selection.wfpp.keep_fraction", "uniform": [0.1, 0.9]},
        "text": {"keys": "model.config.text_cfg", "choice": [text]},
    }
    sweep = SweepConfig.model_validate(config.sweep.model_dump() | {"space": space, "search": "optuna"})
    config = config.model_copy(update={"sweep": sweep, "model": model})
    point = {"warmup": 3, "kept": 0.5, "text": text}
    job = suggested_job(config, point, num_concurrent=1)
    write_state(job.out, TrialState(state="running", settings=job.settings))
    # as an earlier version left a folder: its name has the keys in the order of this file
    folder = f"{config.out}/trials/{folder_name({**dict(sorted(point.items())), 'seed': 0})}"
    files.write_json(files.join(folder, "settings.json"), job.settings)
    assert len(files.names(f"{config.out}/trials")) == 2
    (found,) = execute.SweepTrials(config)._suggested_before()
    assert (found.name, found.out, found.settings) == (job.name, job.out, point)
    assert suggested_job(config, dict(reversed(point.items())), num_concurrent=1).name == job.name


def report_with_tasks() -> Report:
    one = {"key": "cars", "name": "Cars", "group": None, "metric": "acc1", "value": 0.5, "metrics": {"acc1": 0.5}}
    averages = [{"name": "VTAB", "value": None, "measured": 0, "of": 2}]
    averages += [{"name": "all tasks", "value": 0.5, "measured": 1, "of": 3}]
    table = {"results": [one | {"num_images": 9, "skipped": 0}], "skipped": [], "averages": averages}
    whole: dict[str, Any] = {"name": "n", "verb": "run", "started": "", "wall_seconds": 1.0, "config": {}}
    return Report(**whole, stages=[], fingerprints={}, versions={}, tasks={"pretrain": table})  # type: ignore[arg-type]


def test_benchmark_tasks_are_metrics() -> None:
    found = metrics_of(report_with_tasks(), "pretrain")
    assert found == {"tasks/cars": 0.5, "tasks/average, all tasks": 0.5}
    assert metrics_of(report_with_tasks(), "finetune") == {}


def test_averages_over_tasks_are_columns_of_the_page() -> None:
    from orchestrator.sweep.report.summary import settings_of
    from tests.support.sweep_reports import report_of, trial

    one = trial("one", 0.3, 0.5, finetune=False)
    model = one.models["pretrain"]
    measured = model.model_copy(update={"metrics": {**model.metrics, "tasks/cars": 0.1, "tasks/average, VTAB": 0.2}})
    report = report_of([one.model_copy(update={"models": {"pretrain": measured}})])
    assert metrics_shown(report, settings_of(report))[-1] == "tasks/average, VTAB"


@pytest.mark.parametrize(("at_once", "devices"), [(1, 64), (4, 16), (32, 4), (None, 6)])
def test_a_trial_occupies_its_share_of_the_cores(
    config: Config, monkeypatch: pytest.MonkeyPatch, at_once: int | None, devices: int
) -> None:
    for name, number in (("num_gpus", 0), ("num_cores", 64), ("num_cpus", 64), ("num_train_workers", 2)):
        monkeypatch.setattr(ray_cluster, name, lambda *_, number=number, **__: number)
    sweep = config.sweep.model_copy(update={"max_concurrent": at_once})
    training = config.training.model_copy(update={"cpus_per_worker": 2})
    found = execute._devices(config.model_copy(update={"sweep": sweep, "training": training}))
    assert found == {"devices": devices, "device": "core"}


def test_any_measured_metric_can_compare_trials(config: Config) -> None:
    sweep = config.sweep.model_copy(update={"metric": "zero_shot/mean_per_class"})
    execute._check(config.model_copy(update={"sweep": sweep}))
