"""GPUs: which ones a task or actor may use, how many one task should request, and the precision that all of them
compute fast.

`torch.cuda.is_available()` does not answer the first question: a process may see GPUs of others. Without torch, which
plans and reading tasks do not import."""

from __future__ import annotations

from typing import Literal

import ray
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.util.placement_group import get_current_placement_group

from orchestrator.config import ClusterConfig
from orchestrator.engine import ray_cluster
from orchestrator.engine.ray_address import address_of

TYPE = "accelerator_type:"
# NVIDIA's generations before Ampere, by the beginning of the names that Ray gives them
WITHOUT_BF16 = ("V100", "P100", "P4", "P40", "T4", "K80", "M60", "GeForce-GTX", "GeForce-RTX-20", "Quadro", "TITAN")


def num_own() -> int:
    """Return the number of GPUs that this task or actor has reserved; 0 in a driver."""
    return len(ray.get_gpu_ids()) if ray.is_initialized() else 0


def num_of_node() -> int:
    """Return the number of GPUs that one task should request: all of the largest node, but in a trial of a sweep one.

    Trials share the cluster: a task that needs a whole node would wait until no other trial trains there. The number is
    at least one if an autoscaler may add GPUs."""
    if get_current_placement_group() is not None or not ray_cluster.num_gpus():
        return min(1, ray_cluster.num_gpus())
    return max(1, *(int(node["Resources"].get("GPU", 0)) for node in ray_cluster.running_nodes()))


def native_precision(config: ClusterConfig) -> Literal["fp32", "bf16", "fp16"]:
    """Return the precision that every GPU of a cluster computes fast, or fp32 for a cluster without GPUs.

    If an autoscaler may add GPUs, the answer is bf16, so that it does not change with the nodes. Connects to the
    cluster, unless it is one that a run would start on this machine."""
    if config.scales_to_gpus:
        return "bf16"
    types = _types(config)
    if not types:
        return "fp32"
    return "fp16" if any(name.startswith(WITHOUT_BF16) for name in types) else "bf16"


def _types(config: ClusterConfig) -> set[str]:
    # a node's GPUs are of one type; "" if Ray does not know it
    if not ray.is_initialized() and address_of(config) == "local":
        return _types_here()
    ray_cluster.connect(config)
    with_gpus = [node["Resources"] for node in ray_cluster.running_nodes() if node["Resources"].get("GPU")]
    return {
        next((name.removeprefix(TYPE) for name in resources if name.startswith(TYPE)), "") for resources in with_gpus
    }


def _types_here() -> set[str]:
    # as Ray counts them when it starts
    manager = get_accelerator_manager_for_resource("GPU")
    assert manager is not None
    visible = manager.get_current_process_visible_accelerator_ids()
    num_here = manager.get_current_node_num_accelerators() if visible != [] else 0
    return {manager.get_current_node_accelerator_type() or ""} if num_here else set()
