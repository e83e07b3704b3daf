"""Connecting to a Ray cluster: which cluster, its size with an autoscaler, and paths that a job would lose."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ray._private import worker

from orchestrator.config import ClusterConfig, TrainingConfig
from orchestrator.engine import ray_cluster as cluster
from orchestrator.engine.ray_address import address_of
from orchestrator.engine.ray_start import EXPECTED, log_messages
from orchestrator.errors import ClusterError, UserError


@pytest.fixture
def _reconnected(ray_cluster: str) -> Iterator[None]:
    yield
    cluster.connect(ClusterConfig())


@pytest.mark.usefixtures("_reconnected")
def test_the_size_of_an_autoscaling_cluster_is_its_maximum() -> None:
    now = cluster.num_cpus()
    assert cluster.num_gpus() == 0
    cluster.connect(ClusterConfig(scales_to_cpus=1000, scales_to_gpus=16))
    assert (cluster.num_cpus(), cluster.num_cores(), cluster.num_gpus()) == (1000, 1000, 16)
    assert cluster.num_train_workers(TrainingConfig()) == 16
    with pytest.raises(UserError, match="the cluster has 16 GPUs"):
        cluster.num_train_workers(TrainingConfig(num_workers=32))
    cluster.connect(ClusterConfig(scales_to_cpus=1))
    assert cluster.num_cpus() == now


@pytest.mark.parametrize(
    ("gpus", "hint"),
    [
        (6, "training.lanes=66 training.global_batch_size=32736"),
        (12, "training.lanes=72 training.global_batch_size=32760"),
        (24, "training.lanes=72 training.global_batch_size=32760"),
    ],
)
def test_a_number_of_gpus_that_does_not_divide_the_lanes_gets_settings_that_work(
    gpus: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "num_gpus", lambda: gpus)
    with pytest.raises(UserError, match=rf"lanes=64 must be a multiple of the {gpus} training workers.*{hint} "):
        cluster.num_train_workers(TrainingConfig())
    settings = {key.removeprefix("training."): int(value) for key, value in (one.split("=") for one in hint.split())}
    assert cluster.num_train_workers(TrainingConfig(**settings)) == gpus


def test_an_unreachable_address_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    for address, message in {
        "127.0.0.1:1": "no Ray cluster answers at 127.0.0.1:1 .*HOST:PORT",
        "http://127.0.0.1:8265": "to which jobs are submitted; expected HOST:PORT",
    }.items():
        with pytest.raises(UserError, match=message):
            cluster.connect(ClusterConfig(address=address))


def test_messages_of_the_cluster_go_to_the_log_and_not_to_stdout(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    retried = "Task read failed. There are infinite retries remaining, so the task will be retried."
    log_messages()
    # as Ray's thread that listens to the cluster calls it
    for line in (retried, f"WARNING: 12 PYTHON {EXPECTED} 1f"):
        worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert [record.getMessage() for record in caplog.records] == [f"Ray: {retried}"]
    assert capsys.readouterr().out == ""


def test_a_running_cluster_on_this_node_is_used(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert address_of(ClusterConfig()) == "local"
    noted = tmp_path / "ray" / "ray_current_cluster"
    noted.parent.mkdir()
    noted.write_text(ray_cluster)
    assert address_of(ClusterConfig()) == "auto"
    assert address_of(ClusterConfig(num_cpus=2)) == "local"
    assert address_of(ClusterConfig(address="local")) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_of(ClusterConfig()) == "10.0.0.1:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    with socket.socket() as other_program:
        other_program.bind(("127.0.0.1", 0))
        other_program.listen()
        noted.write_text(f"127.0.0.1:{other_program.getsockname()[1]}")
        assert address_of(ClusterConfig()) == "local"


@pytest.mark.parametrize(
    "raised",
    [
        Exception("The current node timed out during startup. This could happen because ..."),
        RuntimeError("Failed to start GCS.  Last 1 lines of error files:\n\n.Please check gcs_server.out"),
        TimeoutError(),
    ],
)
def test_a_cluster_that_does_not_start_in_time_is_one_line(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*args: Any, **how: Any) -> NoReturn:
        raise raised

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", late)
    with pytest.raises(
        ClusterError, match=r"did not start on this machine: .*when the machine is less busy.*ray start"
    ):
        cluster.connect(ClusterConfig(address="local"))


def test_an_internal_error_at_startup_is_not_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **how: Any) -> NoReturn:
        raise TypeError("init() got an unexpected keyword")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", broken)
    with pytest.raises(TypeError):
        cluster.connect(ClusterConfig(address="local"))


def test_paths_in_a_jobs_copy_of_the_working_directory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    places = {"store": str(copy / "runs" / "store"), "out": "s3://bucket/out"}
    cluster.check_outlive_job(places)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"store=runs/store lies in the job's copy .* store=s3://"):
        cluster.check_outlive_job(places)
    cluster.check_outlive_job({"store": str(tmp_path / "store"), "out": "s3://bucket/out"})
    monkeypatch.chdir(tmp_path)
    cluster.check_outlive_job({"store": str(tmp_path / "runs" / "store")})
