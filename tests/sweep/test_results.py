"""What is told of trials: those that end without running, those stopped early, benchmark tasks; and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config, ModelConfig, SweepConfig
from orchestrator.engine import ray_cluster
from orchestrator.report.schema import Report
from orchestrator.storage import files
from orchestrator.sweep import execute as sweep_run
from orchestrator.sweep.board import Row
from orchestrator.sweep.results import trial_result
from orchestrator.sweep.summary import metrics_shown
from orchestrator.sweep.trial_worker import SETTINGS_FILE, STOPPED_FILE, metrics_of
from orchestrator.sweep.trials import label, space_trials, suggested_job
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
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.tell = self

    def remote(self, name: str, row: Row) -> None:
        self.rows[name] = row


def test_who_never_runs_does_not_wait_on_the_board(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_run, "num_concurrent", lambda _: 1)
    trials, board = sweep_run._Trials(config), FakeBoard()
    stopped, refused = trials.space
    files.write_json(files.join(stopped.out, STOPPED_FILE), {"samples_seen": 5})
    trials.shared.refused[refused.name] = "no room"
    results = trials._fixed("trials", trials.space, board)
    assert [one.state for one in results] == ["stopped", "failed"]
    assert {name: row.stage for name, row in board.rows.items()} == {
        stopped.name: "ended before",
        refused.name: "cannot be",
    }


def test_a_stopped_trial_tells_how_good_it_was_and_what_it_cost(config: Config) -> None:
    trial = space_trials(config)[0]
    last = {"samples_seen": 640, "value": 0.125, "seconds": 3.456}
    files.write_json(files.join(trial.out, STOPPED_FILE), last)
    result = trial_result(trial, None)
    assert result.reason == "others were better after 640 samples, where zero_shot/top1 was 12.5%"
    model = result.models["pretrain"]
    assert (model.samples_seen, model.training_seconds, model.metrics) == (640, 3.46, {METRIC: 0.125})


def test_a_resumed_search_knows_its_trials_and_each_once(config: Config) -> None:
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
    # the second as an earlier version left it, which took a point's keys in the order of this file
    for folder in (job.out, f"{config.out}/trials/{label({**dict(sorted(point.items())), 'seed': 0})}"):
        files.write_json(files.join(folder, SETTINGS_FILE), job.settings)
    assert len(files.names(f"{config.out}/trials")) == 2
    (found,) = sweep_run._Trials(config)._suggested_before()
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


def test_averages_over_tasks_are_in_the_pages_table() -> None:
    from orchestrator.sweep.summary import settings_of
    from tests.support.sweep_reports import report_of, trial

    one = trial("one", 0.3, 0.5, finetune=False)
    model = one.models["pretrain"]
    measured = model.model_copy(update={"metrics": {**model.metrics, "tasks/cars": 0.1, "tasks/average, VTAB": 0.2}})
    report = report_of([one.model_copy(update={"models": {"pretrain": measured}})])
    assert metrics_shown(report, settings_of(report))[-1] == "tasks/average, VTAB"


@pytest.mark.parametrize(("at_once", "devices"), [(1, 64), (4, 16), (32, 4), (None, 6)])
def test_training_holds_the_cores_that_its_threads_take(
    config: Config, monkeypatch: pytest.MonkeyPatch, at_once: int | None, devices: int
) -> None:
    for name, number in (("num_gpus", 0), ("num_cores", 64), ("num_cpus", 64), ("num_train_workers", 2)):
        monkeypatch.setattr(ray_cluster, name, lambda *_, number=number, **__: number)
    sweep = config.sweep.model_copy(update={"max_concurrent": at_once})
    training = config.training.model_copy(update={"cpus_per_worker": 2})
    found = sweep_run._devices(config.model_copy(update={"sweep": sweep, "training": training}))
    assert found == {"devices": devices, "device": "core"}


def test_what_is_measured_at_the_end_may_be_what_trials_are_compared_by(config: Config) -> None:
    sweep = config.sweep.model_copy(update={"metric": "zero_shot/mean_per_class"})
    sweep_run._check(config.model_copy(update={"sweep": sweep}))
