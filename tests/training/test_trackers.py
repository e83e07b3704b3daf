"""W&B offline and a real MLflow server: what users find there, and how training continues when they fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config, TrackingConfig, parse
from orchestrator.errors import UserError
from orchestrator.training.tracking import trackers as trackers_module
from orchestrator.training.tracking.services import flat_settings, mlflow_client
from orchestrator.training.tracking.trackers import check_trackers
from tests.support.commands import Shell, tiny_command
from tests.support.pools import config_of, write_zero_shot
from tests.support.tracking_services import (
    RESULTS,
    Server,
    evaluated,
    finish,
    of_kind,
    record,
    start,
    train,
    wandb_runs,
    wandb_steps,
)

NOWHERE = "http://someone:secret@127.0.0.1:9"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _wandb_is_offline_by_config_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    # the folders in which W&B prepares artifacts
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def make(name: str = "demo", **settings: Any) -> Config:
        made = config_of({"format": "demo"}, tmp_path / "STORE", tracking={"tensorboard": False, **settings})
        return made.model_copy(update={"name": name, "out": str(tmp_path / "OUT" / name)})

    return make


def test_wandb_has_one_run_per_phase(config: Callable[..., Config], tmp_path: Path) -> None:
    made = config("demo", wandb_project="clip", wandb_mode="offline")
    for phase in ("pretrain", "finetune"):
        train(made, str(tmp_path / phase), range(3), phase=phase)
    found = {}
    for records in wandb_runs(made.out).values():
        run = of_kind(records, "run")[0]
        found[run.display_name] = (run.project, run.run_group, run.job_type)
        assert wandb_steps(records) == [1, 2, 3]
        keys = {item.nested_key[0] for item in of_kind(records, "history")[0].item}
        assert {"train/loss", "train/lr", "train/samples_seen"} <= keys
        settings = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert settings["training"]["global_batch_size"] == made.training.global_batch_size
    assert found == {
        "demo/pretrain": ("clip", "demo", "pretrain"),
        "demo/finetune": ("clip", "demo", "finetune"),
    }


def test_a_resumed_phase_continues_the_same_run_of_wandb(config: Callable[..., Config], tmp_path: Path) -> None:
    made = config("demo", wandb_project="clip", wandb_mode="offline")
    uri = str(tmp_path / "pretrain")
    train(made, uri, range(3))
    train(made, uri, range(3, 5))
    train(config("other", wandb_project="clip", wandb_mode="offline"), uri, range(1))
    first, second = (of_kind(records, "run")[0].run_id for records in wandb_runs(made.out).values())
    (other,) = (of_kind(records, "run")[0].run_id for records in wandb_runs(config("other").out).values())
    assert first == second != other
    assert [step for records in wandb_runs(made.out).values() for step in wandb_steps(records)] == [1, 2, 3, 4, 5]


def test_trials_of_a_sweep_are_one_group(config: Callable[..., Config], tmp_path: Path, server: Server) -> None:
    tracked = {"wandb_project": "clip", "wandb_mode": "offline", "mlflow_uri": server.uri, "mlflow_experiment": "sweep"}
    names = ("demo/keep=0.5", "demo/full")
    for name in names:
        made = config(name, **tracked)
        train(made, str(tmp_path / name), range(1))
        (records,) = wandb_runs(made.out).values()
        run = of_kind(records, "run")[0]
        assert (run.display_name, run.run_group) == (f"{name}/pretrain", "demo")
        assert set(run.tags) >= {"group: demo", "selection: wfpp", "seed: 0"}
    runs = server.runs("sweep")
    assert {name: (run.data.tags["group"], run.data.tags["trial"]) for name, run in runs.items()} == {
        f"{name}/pretrain": tuple(name.split("/")) for name in names
    }
    assert {run.data.tags["seed"] for run in runs.values()} == {"0"}


def test_mlflow_has_one_run_per_phase(config: Callable[..., Config], tmp_path: Path, server: Server) -> None:
    made = config("phases", mlflow_uri=server.uri)
    for phase in ("pretrain", "finetune"):
        train(made, str(tmp_path / phase), range(3), phase=phase)
    runs = {name: run for name, run in server.runs().items() if name.startswith("phases/")}
    assert set(runs) == {"phases/pretrain", "phases/finetune"}
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert server.steps(run) == [1, 2, 3]
        assert run.data.params["training.global_batch_size"] == str(made.training.global_batch_size)
        assert run.data.params["name"] == "phases"
    assert runs["phases/finetune"].data.tags["phase"] == "finetune"


def test_a_resumed_phase_continues_the_same_run_of_mlflow(
    config: Callable[..., Config], tmp_path: Path, server: Server
) -> None:
    made, uri = config("resumed", mlflow_uri=server.uri), str(tmp_path / "pretrain")
    with pytest.raises(RuntimeError):
        train_until_it_breaks(made, uri)
    assert server.runs()["resumed/pretrain"].info.status == "FAILED"
    # the last checkpoint is older than the last logged step
    train(made, uri, range(1, 5))
    run = server.runs()["resumed/pretrain"]
    assert server.steps(run) == [1, 2, 3, 4, 5]
    assert run.info.status == "FINISHED"


def train_until_it_breaks(config: Config, uri: str) -> None:
    trackers = start(config, uri)
    try:
        for step in (1, 2, 3):
            trackers.log(record(step))
        raise RuntimeError("training failed")
    finally:
        trackers.close()


def test_long_and_odd_settings_are_logged(config: Callable[..., Config], tmp_path: Path, server: Server) -> None:
    made = config("odd", mlflow_uri=server.uri)
    odd = {f"key {number} (é)": "x" * 10_000 for number in range(150)}
    made = made.model_copy(update={"model": made.model.model_copy(update={"name": None, "config": odd})})
    train(made, str(tmp_path / "pretrain"), range(1))
    params = server.runs()["odd/pretrain"].data.params
    assert sum(key.startswith("model.config.key ") for key in params) == 150
    assert {len(value) for key, value in params.items() if key.startswith("model.config.")} == {6000}


def test_settings_are_flattened() -> None:
    settings = {"a": {"b": [1, 2], "c": {"d": None}}, "e": {}, "f": "text"}
    assert flat_settings(settings) == {"a.b": "[1, 2]", "a.c.d": "null", "e": "{}", "f": "text"}


def test_the_report_is_attached(config: Callable[..., Config], tmp_path: Path, server: Server) -> None:
    made = config("reported", mlflow_uri=server.uri, wandb_project="clip", wandb_mode="offline")
    phases = {phase: str(tmp_path / phase) for phase in ("pretrain", "finetune")}
    for phase, uri in phases.items():
        train(made, uri, range(2), phase=phase)
    assert finish(made, phases) == []
    for phase in phases:
        run = server.runs()[f"reported/{phase}"]
        assert {file.path for file in server.client.list_artifacts(run.info.run_id)} == {"report.html", "report.json"}
        found = Path(server.client.download_artifacts(run.info.run_id, "report.html", str(tmp_path)))
        assert found.read_text() == "report.html of reported"
        assert server.steps(run) == [1, 2], "nothing is logged twice"
        assert run.info.status == "FINISHED"
    (artifact, _) = [one for records in wandb_runs(made.out).values() for one in of_kind(records, "artifact")]
    assert (artifact.type, artifact.name) == ("report", "reported-report")
    assert {one.path for one in artifact.manifest.contents} == {"report.html", "report.json"}


def test_a_reused_phase_gets_its_curve(config: Callable[..., Config], tmp_path: Path, server: Server) -> None:
    first = config("first", mlflow_uri=server.uri)
    second = config("second", mlflow_uri=server.uri, wandb_project="clip", wandb_mode="offline")
    phases = {"pretrain": str(tmp_path / "pretrain")}
    train(first, phases["pretrain"], range(3))
    assert finish(second, phases, reused=True) == []
    runs = server.runs()
    assert server.steps(runs["first/pretrain"]) == server.steps(runs["second/pretrain"]) == [1, 2, 3]
    (records,) = wandb_runs(second.out).values()
    assert wandb_steps(records) == [1, 2, 3]


@pytest.mark.parametrize("reused", [False, True])
def test_the_results_of_the_evaluation_are_at_the_last_step(
    config: Callable[..., Config], tmp_path: Path, server: Server, reused: bool
) -> None:
    name = "judged again" if reused else "judged"
    made = config(name, mlflow_uri=server.uri, wandb_project="clip", wandb_mode="offline")
    phases = {"pretrain": str(tmp_path / "pretrain")}
    train(config("first") if reused else made, phases["pretrain"], range(3))
    made, evaluation = evaluated(made, phases, 3)
    for _ in range(2):
        assert finish(made, phases, evaluation, reused=reused) == []
    run = server.runs()[f"{name}/pretrain"]
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("val/")} == RESULTS
    assert [server.steps(run, key) for key in ("val/zero_shot/top1", "train/loss")] == [[3], [1, 2, 3]]
    last = list(wandb_runs(made.out).values())[-1]
    row = of_kind(last, "history")[-1]
    values = {item.nested_key[0]: json.loads(item.value_json) for item in row.item}
    assert row.step.num == 3
    assert RESULTS.items() <= values.items()


def test_a_tracker_gets_missed_steps_at_the_end_of_the_run(
    config: Callable[..., Config], tmp_path: Path, server: Server
) -> None:
    phases, warnings = {"pretrain": str(tmp_path / "pretrain")}, []
    train(config("demo/away", mlflow_uri=NOWHERE), phases["pretrain"], range(3), warn=warnings.append)
    (line,) = warnings
    assert line.startswith("pretrain: training continues without MLflow: "), "not an error: the sweep has checked it"
    assert finish(config("demo/away", mlflow_uri=server.uri), phases) == []
    assert server.steps(server.runs()["demo/away/pretrain"]) == [1, 2, 3]


def test_tensorboard_has_the_curve_by_phase(config: Callable[..., Config], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = config(tensorboard=True)
    phases = {phase: str(tmp_path / "STORE" / phase / "0123") for phase in ("pretrain", "finetune")}
    for phase, uri in phases.items():
        train(made, uri, range(3), phase=phase)
        # from a checkpoint before the last logged step
        train(made, uri, range(2, 4), phase=phase)
    made, evaluation = evaluated(made, phases, 4)
    for _ in range(2):
        assert finish(made, phases, evaluation) == []
    for phase in phases:
        events = EventAccumulator(f"{made.out}/tensorboard/{phase}").Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
        assert {name: [(4, value)] for name, value in RESULTS.items()} == {
            name: [(event.step, event.value) for event in events.Scalars(name)] for name in RESULTS
        }
        (text,) = events.Tensors("config/text_summary")
        assert b"global_batch_size" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize("where", ["before training", "as it starts"])
def test_an_mlflow_that_does_not_answer_is_an_error_at_the_start(
    config: Callable[..., Config], tmp_path: Path, where: str
) -> None:
    made, began = config(mlflow_uri=NOWHERE), time.monotonic()
    with pytest.raises(UserError) as raised:
        check_trackers(made.tracking) if where == "before training" else start(made, str(tmp_path))
    (line,) = str(raised.value).splitlines()
    assert line.startswith("tracking.mlflow_uri=http://***@127.0.0.1:9 does not answer: ")
    assert "secret" not in line
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("name", ["demo", "demo/trial"])
def test_a_wandb_without_a_login_is_an_error_at_the_start(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"wandb login.*tracking\.wandb_mode=offline"):
        start(config(name, wandb_project="clip", wandb_mode="online"), str(tmp_path / "pretrain"))


def test_a_server_that_answers_passes_the_check(config: Callable[..., Config], server: Server) -> None:
    check_trackers(config(mlflow_uri=server.uri, wandb_project="clip").tracking)
    check_trackers(config().tracking)


def test_an_unreachable_tracker_of_a_resumed_phase_is_a_warning(config: Callable[..., Config], tmp_path: Path) -> None:
    warnings: list[str] = []
    train(config(mlflow_uri=NOWHERE), str(tmp_path / "pretrain"), range(2, 4), warn=warnings.append)
    (line,) = warnings
    assert line.startswith("pretrain: training continues without MLflow: ")
    assert "secret" not in line


@pytest.mark.slow
def test_a_server_that_comes_back_gets_the_missed_steps(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, warnings = Server(tmp_path), []
    trackers = start(config(mlflow_uri=server.uri), str(tmp_path / "pretrain"), warn=warnings.append)
    try:
        trackers.log(record(1))
        server.kill()
        began = time.monotonic()
        for step in range(2, 50):
            trackers.log(record(step))
        assert time.monotonic() - began < 30, "it is not tried again at every step"
        (line,) = warnings
        assert line.startswith("MLflow does not answer, training continues: ")
        server.start()
        monkeypatch.setattr(trackers_module, "RETRY_SECONDS", 0.0)
        trackers.log(record(50))
        trackers.close()
        assert server.steps(server.runs()["demo/pretrain"]) == list(range(1, 51))
        assert len(warnings) == 1
    finally:
        server.kill()


def test_a_missing_server_at_the_end_is_a_warning(
    config: Callable[..., Config], tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, warnings = config("gone", mlflow_uri=server.uri), []
    trackers = start(made, str(tmp_path / "pretrain"), warn=warnings.append)
    trackers.retrying[0].tracker.client = mlflow_client(config(mlflow_uri=NOWHERE).tracking)
    trackers.log(record(1))
    trackers.close()
    assert len(warnings) == 1
    (told,) = finish(config("gone", mlflow_uri=NOWHERE), {"pretrain": str(tmp_path / "pretrain")})
    assert told.startswith("MLflow did not get the report of gone/pretrain: ")
    assert "secret" not in told


def test_a_password_is_used_but_not_written(config: Callable[..., Config]) -> None:
    made = config(mlflow_uri=NOWHERE)
    assert made.tracking.mlflow_uri == parse(made.model_dump()).tracking.mlflow_uri == NOWHERE
    assert "secret" not in json.dumps(made.model_dump(mode="json"))
    assert made.model_dump(mode="json")["tracking"]["mlflow_uri"] == "http://***@127.0.0.1:9"
    assert flat_settings(made.model_dump(mode="json"))["tracking.mlflow_uri"] == "http://***@127.0.0.1:9"


def test_a_relative_database_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert TrackingConfig(mlflow_uri="sqlite:///m.db").mlflow_uri == f"sqlite:///{tmp_path}/m.db"
    for uri in ("sqlite:////m.db", "http://127.0.0.1:5000", "databricks"):
        assert TrackingConfig(mlflow_uri=uri).mlflow_uri == uri


@pytest.mark.slow
@pytest.mark.long
def test_a_run_is_tracked_in_both_services(
    run_command: Shell, tiny_conf: str, tar_pool: str, tmp_path: Path, server: Server
) -> None:
    write_zero_shot(tmp_path)
    places = f"out=OUT store=STORE name=whole tracking.mlflow_uri={server.uri}"
    command = f"{tiny_command(tiny_conf, tar_pool)} {places} tracking.wandb_project=clip tracking.wandb_mode=offline"
    done = run_command(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = {name: run for name, run in server.runs().items() if name.startswith("whole/")}
    assert set(runs) == {"whole/pretrain", "whole/finetune"}
    in_wandb: dict[str, list[int]] = {}
    for records in wandb_runs(str(tmp_path / "OUT")).values():
        name = of_kind(records, "run")[0].display_name
        in_wandb[name] = in_wandb.get(name, []) + wandb_steps(records)
    for name, run in runs.items():
        (curve,) = (tmp_path / "STORE" / name.split("/")[1]).glob("*/metrics.jsonl")
        steps = [json.loads(line)["step"] for line in curve.read_text().splitlines()]
        assert server.steps(run) == steps
        assert in_wandb[name] == steps
        assert run.info.status == "FINISHED"
