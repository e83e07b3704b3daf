"""The size of a cluster, with and without an autoscaler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from orchestrator.config import ClusterConfig
from orchestrator.engine import ray_cluster


@pytest.fixture
def keeps_size(ray_cluster: str) -> Iterator[None]:
    yield
    connect()


def connect(**settings: int) -> None:
    ray_cluster.connect(ClusterConfig.model_validate(settings))


@pytest.mark.usefixtures("keeps_size")
def test_the_size_of_a_cluster_includes_what_its_autoscaler_may_add() -> None:
    connect()
    cpus, gpus = ray_cluster.num_cpus(), ray_cluster.num_gpus()
    connect(scales_to_cpus=cpus + 1000, scales_to_gpus=8)
    assert (ray_cluster.num_cpus(), ray_cluster.num_cores(), ray_cluster.num_gpus()) == (cpus + 1000, cpus + 1000, 8)
    connect(scales_to_cpus=1)
    assert (ray_cluster.num_cpus(), ray_cluster.num_gpus()) == (cpus, gpus), "never less than the present size"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 8}], 1),
        ([{"CPU": 128, "GPU": 8}], 4),
        ([{"CPU": 96, "GPU": 8}, {"CPU": 4}], 3),
        ([{"CPU": 256, "GPU": 8}, {"CPU": 64, "GPU": 8}], 2),
        ([{"CPU": 8, "GPU": 4}], 1),
        ([{"GPU": 1}], 1),
        ([], 1),
    ],
)
def test_workers_with_gpus_reserve_a_quarter_of_their_cpus(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], expected: int
) -> None:
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 1, "GPU": 1}}])
    assert ray_cluster.cpus_per_worker(None) == expected
    assert ray_cluster.cpus_per_worker(7) == 7
