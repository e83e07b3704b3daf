"""What a command knows of its cluster: its size, once it has grown; places that would go with the job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import cluster
from orchestrator.config import ClusterConfig
from orchestrator.errors import UserError


@pytest.fixture
def _as_it_was(ray_cluster: str) -> Iterator[None]:
    yield
    cluster.connect(ClusterConfig())


@pytest.mark.usefixtures("_as_it_was")
def test_one_that_grows_is_asked_for_what_it_may_grow_to() -> None:
    now = cluster.num_cpus()
    assert cluster.num_gpus() == 0
    cluster.connect(ClusterConfig(scales_to_cpus=1000, scales_to_gpus=16))
    assert (cluster.num_cpus(), cluster.num_cores(), cluster.num_gpus()) == (1000, 1000, 16)
    assert cluster.num_train_workers(None, lanes=64) == 16
    with pytest.raises(UserError, match="the cluster has 16 GPUs"):
        cluster.num_train_workers(32, lanes=64)
    cluster.connect(ClusterConfig(scales_to_cpus=1))
    assert cluster.num_cpus() == now


def test_a_cluster_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    for address, told in {
        "127.0.0.1:1": "no Ray cluster answers at 127.0.0.1:1 .*HOST:PORT",
        "http://127.0.0.1:8265": "where jobs are submitted; expected HOST:PORT",
    }.items():
        with pytest.raises(UserError, match=told):
            cluster.connect(ClusterConfig(address=address))


def test_a_place_in_a_jobs_copy_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
