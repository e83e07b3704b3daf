"""The trials of a space and their controls: their names, budgets and keep lists, and what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ray.exceptions import NodeDiedError, RayTaskError, WorkerCrashedError

from orchestrator.config import Config, RandomStep
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.build import build_stage
from orchestrator.engine.console import Display
from orchestrator.engine.run_record import StageRecord
from orchestrator.engine.stage import Stage
from orchestrator.source import open_source
from orchestrator.storage.files import StoreError
from orchestrator.sweep.shared_stages import SharedStages
from orchestrator.sweep.state import reason
from orchestrator.sweep.trials import Trial, TrialPlanner, folder_name, job_of, suggested_job
from tests.support.pools import config_of, make_pairs, write_tars

pytestmark = pytest.mark.usefixtures("ray_cluster")
KEPT = {"kept": {"keys": "selection.wfpp.keep_fraction", "grid": [0.5, 0.75]}}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    uri = write_tars(tmp_path / "pool", make_pairs(24), num_shards=2)
    return with_sweep(config_of({"format": "webdataset", "uri": uri}, tmp_path / "store"), tmp_path, space=KEPT)


def with_sweep(config: Config, folder: Path, **settings: Any) -> Config:
    raw = config.model_dump(mode="json")
    raw["selection"]["settings"] |= {name: {"method": name} for name in ("random", "all", "keep_list")}
    raw["training"] |= {"global_batch_size": 4, "lanes": 2, "epochs": 3}
    return Config.model_validate(raw | {"sweep": settings, "out": str(folder / "out"), "name": "mine"})


def as_task_error(error: Exception) -> Exception:
    """An error as Ray raises it again where it is asked for the result of a task."""
    return RayTaskError("work", "a long trace", error).as_instanceof_cause()


def space_trials(config: Config) -> list[Trial]:
    return TrialPlanner(config).space_trials()


def shared(trials: list[Trial]) -> SharedStages:
    found = SharedStages()
    found.add(trials)
    found.build(trials, Display())
    return found


def test_every_point_and_seed_is_one_run(config: Config, tmp_path: Path) -> None:
    trials = space_trials(with_sweep(config, tmp_path, space=KEPT, seeds=[0, 7]))
    assert [trial.name for trial in trials] == [
        "kept-0.5_seed-0",
        "kept-0.75_seed-0",
        "kept-0.5_seed-7",
        "kept-0.75_seed-7",
    ]
    assert [trial.settings for trial in trials[:2]] == [{"kept": 0.5}, {"kept": 0.75}]
    assert [trial.config.training.seed for trial in trials] == [0, 0, 7, 7]
    assert trials[0].out == str(tmp_path / "out" / "trials" / "kept-0.5_seed-0")
    assert trials[0].config.name == "mine/kept-0.5_seed-0"
    assert len({tuple(trial.model_uris) for trial in trials}) == 4


def test_settings_that_lead_to_the_same_models_are_one_trial(config: Config, tmp_path: Path) -> None:
    # the seed of random selection does not concern word frequency
    space = KEPT | {"clusters": {"keys": "selection.random.seed", "grid": [1, 2, 3]}}
    trials = space_trials(with_sweep(config, tmp_path, space=space, seed_keys=["training.seed"]))
    assert [trial.settings for trial in trials] == [{"kept": 0.5, "clusters": 1}, {"kept": 0.75, "clusters": 1}]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [({"samples": 40}, (40, 3)), ({"epochs": 5}, (None, 5)), ({}, (None, 3))],
)
def test_the_budget_is_samples_or_epochs_or_the_configs(
    config: Config, tmp_path: Path, budget: dict[str, int], expected: tuple[int | None, int]
) -> None:
    trials = space_trials(with_sweep(config, tmp_path, space=KEPT, **budget))
    assert {(trial.config.training.samples, trial.config.training.epochs) for trial in trials} == {expected}


def test_controls_keep_all_and_as_many_random_pairs(config: Config, tmp_path: Path) -> None:
    planner = TrialPlanner(with_sweep(config, tmp_path, space=KEPT, seeds=[0, 1]))
    trials = planner.space_trials()
    built = shared(trials)
    controls = [*planner.full_controls(), *planner.random_controls(trials)]
    assert [control.name for control in controls] == [
        *("full_seed-0", "full_seed-1"),
        *("random-12_seed-0", "random-18_seed-0", "random-12_seed-1", "random-18_seed-1"),
    ]
    assert [control.control for control in controls] == ["full"] * 2 + ["random"] * 4
    built.add(controls)
    built.build(controls, Display())
    kept = [KeepList(control.pipeline.kept) for control in controls]
    assert [keep.num_pairs for keep in kept] == [24, 24, 12, 18, 12, 18]
    assert isinstance(controls[4].config.selection.settings["random"], RandomStep)
    draws = [b"".join(keep.mask(part, 12).tobytes() for part in range(2)) for keep in (kept[2], kept[4])]
    assert draws[0] != draws[1], "every seed draws other pairs"
    without = TrialPlanner(with_sweep(config, tmp_path, space=KEPT, controls={"full": False, "random": False}))
    assert [*without.full_controls(), *without.random_controls(trials)] == []


def test_each_seed_has_controls_for_its_trials(config: Config, tmp_path: Path) -> None:
    planner = TrialPlanner(with_sweep(config, tmp_path, space=KEPT, seeds=[0, 1]))
    half_0, _, _, more_1 = trials = planner.space_trials()
    shared(trials)
    assert [one.name for one in planner.random_controls([half_0, more_1])] == ["random-12_seed-0", "random-18_seed-1"]
    both = [f"random-{count}_seed-{seed}" for seed in (0, 1) for count in (12, 18)]
    assert [one.name for one in planner.random_controls(trials[:2])] == both, "the trials of the other seed equal these"


def test_the_pool_is_listed_once_for_all_trials(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[Any] = []
    monkeypatch.setattr("orchestrator.sweep.trials.open_source", lambda one: listed.append(one) or open_source(one))
    config = with_sweep(config, tmp_path, space=KEPT, seeds=[0, 1])
    suggested_job(config, {"kept": 0.6}, num_concurrent=1)
    assert not listed, "a job plans nothing"
    planner = TrialPlanner(config)
    trials = planner.space_trials() + planner.full_controls()
    assert len(listed) == 1
    assert len({id(trial.pipeline.source) for trial in trials}) == 1


def test_shared_stages_are_built_once(config: Config, tmp_path: Path) -> None:
    trials = space_trials(with_sweep(config, tmp_path, space=KEPT, seeds=[0, 1]))
    counts = {one.kind: (one.needed, one.distinct, one.computed) for one in shared(trials).counts()}
    assert counts["catalog"] == (4, 1, 1)
    assert counts["scores"] == (4, 1, 1)
    # the pool, one for each keep fraction, and the keep list of the fine-tune epoch
    assert counts["keep"] == (12, 4, 4)
    again = {one.kind: (one.needed, one.distinct, one.computed) for one in shared(trials).counts()}
    assert again == {kind: (needed, distinct, 0) for kind, (needed, distinct, _) in counts.items()}


def test_a_failed_stage_fails_only_the_trials_that_need_it(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"key": ["of another pool"]}).write_parquet(tmp_path / "other.parquet")
    lists = {"list": {"keys": "selection.keep_list.uri", "grid": [str(tmp_path / "other.parquet")]}}
    mixed = {"steps": {"keys": "selection.steps", "grid": [["keep_list"], ["wfpp"]]}}
    config = with_sweep(config, tmp_path, space=lists | mixed)
    trials = space_trials(config)
    built = shared(trials)
    assert set(built.failed) == {trials[0].name}
    failed = built.failed[trials[0].name]
    assert "max_missing" in failed
    assert f"{trials[0].name} failed to prepare: {failed}\n" in capsys.readouterr().out
    assert KeepList(trials[1].pipeline.kept).num_pairs == 19


@pytest.mark.parametrize("error", [MemoryError("no room"), WorkerCrashedError(), as_task_error(ValueError("faiss"))])
def test_any_error_of_a_stage_fails_the_trials_that_need_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    trials = space_trials(with_sweep(config, tmp_path, space=KEPT))
    fails_at(trials[1].pipeline.kept, error, monkeypatch)
    assert shared(trials).failed == {trials[1].name: reason(error)}


@pytest.mark.parametrize(
    "error", [StoreError("the disk is full"), as_task_error(StoreError("no such bucket")), NodeDiedError("gone")]
)
def test_lost_storage_or_a_lost_node_ends_the_sweep(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    trials = space_trials(with_sweep(config, tmp_path, space=KEPT))
    fails_at(trials[1].pipeline.kept, error, monkeypatch)
    with pytest.raises(type(error)):
        shared(trials)


def fails_at(artifact: Artifact, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_or_fail(stage: Stage, display: Display, on_lost: None) -> StageRecord:
        if stage.artifact == artifact:
            raise error
        return build_stage(stage, display)

    monkeypatch.setattr("orchestrator.sweep.shared_stages.build_stage", build_or_fail)


def test_jobs_know_their_samples_and_when_to_measure(config: Config, tmp_path: Path) -> None:
    trials = space_trials(with_sweep(config, tmp_path, space=KEPT))
    shared(trials)
    assert [job_of(trial, num_concurrent=2).num_samples for trial in trials] == [3 * 12 + 24, 3 * 18 + 24]
    assert job_of(trials[0], num_concurrent=2).config.sweep.max_concurrent == 2
    stopping = space_trials(with_sweep(config, tmp_path, space=KEPT, early_stopping="asha", samples=36))
    # ASHA first judges after a quarter of the 9 steps (36 samples): measure at the next whole step, 3
    assert job_of(stopping[0], num_concurrent=2).config.training.evaluate_every_steps == 3
    never = space_trials(with_sweep(config, tmp_path, space=KEPT, samples=36))
    assert stopping[0].model_uris == never[0].model_uris, "measuring during training changes no model"
    waiting = space_trials(with_sweep(config, tmp_path, space={"kept": KEPT["kept"] | {"grid": [0.9]}}))
    assert job_of(waiting[0], num_concurrent=2).num_samples is None, "its keep list is not built"
    suggested = suggested_job(with_sweep(config, tmp_path, space=KEPT), {"kept": 0.6}, num_concurrent=1)
    assert (suggested.name, suggested.num_samples) == ("kept-0.6_seed-0", None)


def test_names_can_be_folders() -> None:
    assert folder_name({"method": ["semdedup", "dbp"], "lr": 1e-5, "k": 100}) == "method-semdedup+dbp_lr-1e-05_k-100"
    assert folder_name({"n": 1000000.0}) != folder_name({"n": 1000001.0}), "two values are two folders"
    assert folder_name({"../../etc": "a b/c"}).startswith(".._.._etc-a_b_c-")


def test_different_values_have_different_names() -> None:
    alike = [{"uri": "s3://b/a/c"}, {"uri": "s3://b/a_c"}, {"uri": "\u732b"}, {"uri": "\u72ac"}]
    alike += [{f"{'selection.' * 40}k": number} for number in (1, 2)]
    names = [folder_name({**point, "seed": 0}) for point in alike]
    assert len(set(names)) == len(names)
    assert names == [folder_name({**point, "seed": 0}) for point in alike]
    assert all(name.isascii() and "/" not in name and len(name) < 200 for name in names)


def test_the_reason_of_a_failure_is_its_first_cause_on_one_line() -> None:
    error = RuntimeError("a worker died")
    error.__cause__ = MemoryError("no room\nfor it")
    assert reason(error) == "MemoryError: no room for it"
    assert reason(MemoryError()) == "MemoryError"
    of_workers = RuntimeError("Training failed due to worker errors: a long trace")
    of_workers.worker_failures = {0: error}  # type: ignore[attr-defined]
    assert reason(of_workers) == "MemoryError: no room for it"
