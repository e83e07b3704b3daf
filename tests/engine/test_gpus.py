"""Which precision the GPUs of a cluster compute fast, without GPUs: Ray's records of nodes are made up."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config import ClusterConfig
from orchestrator.engine import gpus, ray_cluster


def node(num_gpus: int, kind: str | None = None) -> dict[str, Any]:
    marks = {f"accelerator_type:{kind}": 1.0} if kind else {}
    return {"Resources": {"CPU": 8.0, **({"GPU": float(num_gpus)} if num_gpus else {}), **marks}}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node(0), node(0)], "fp32"),
        ([node(0), node(8, "H100")], "bf16"),
        ([node(1, "A10G"), node(2)], "bf16"),
        ([node(8, "A100"), node(1, "T4")], "fp16"),
        ([node(1, "GeForce-RTX-2080-Ti")], "fp16"),
        ([node(1, "GeForce-RTX-5090")], "bf16"),
    ],
)
def test_all_gpus_of_a_cluster_compute_in_one_precision(
    nodes: list[dict[str, Any]], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "connect", lambda config: None)
    monkeypatch.setattr(ray_cluster, "running_nodes", lambda: nodes)
    assert gpus.native_precision(ClusterConfig(address="10.0.0.1:6379")) == expected


def test_nodes_that_come_and_go_do_not_change_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "running_nodes", lambda: [node(0)])
    assert gpus.native_precision(ClusterConfig(scales_to_gpus=8)) == "bf16"


@pytest.mark.parametrize(
    ("found", "visible", "kind", "expected"),
    [
        (0, None, None, "fp32"),
        (2, None, "A100", "bf16"),
        (2, "", "A100", "fp32"),
        (1, "0", "V100", "fp16"),
        (1, None, None, "bf16"),
    ],
)
def test_a_cluster_that_is_not_started_yet_has_the_gpus_of_this_machine(
    found: int, visible: str | None, kind: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: ClusterConfig) -> None:
        raise AssertionError("no cluster is started for it")

    manager = gpus.get_accelerator_manager_for_resource("GPU")
    monkeypatch.setattr(manager, "get_current_node_num_accelerators", staticmethod(lambda: found))
    monkeypatch.setattr(manager, "get_current_node_accelerator_type", staticmethod(lambda: kind))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gpus.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster, "connect", fails)
    assert gpus.native_precision(ClusterConfig(address="local")) == expected
