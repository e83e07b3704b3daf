"""Which GPUs tasks and actors see. A node counts two GPUs that do not exist: Ray sets variables and touches no
device."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import environment
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
DEVICES = "0,1"
# prints what processes see: CUDA_VISIBLE_DEVICES, and the number of GPUs that are theirs
PROGRAM = """
import json, os, sys
import ray
from orchestrator.config import ClusterConfig
from orchestrator.engine import gpus, ray_cluster

def seen():
    return [os.environ.get("CUDA_VISIBLE_DEVICES"), gpus.num_own()]

class Actor:
    def seen(self):
        return seen()

def rows(batch):
    return {"seen": [json.dumps(seen())]}

if sys.argv[1] == "bare":
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
ray_cluster.connect(ClusterConfig())
task, actors = ray.remote(seen), [ray.remote(Actor).options(num_gpus=share).remote() for share in (0, 0.5)]
asked = {
    "task": task.remote(),
    "actor": actors[0].seen.remote(),
    "GPU task": task.options(num_gpus=1).remote(),
    "GPU actor": actors[1].seen.remote(),
}
if sys.argv[1] == "all":
    allocator = {"env_vars": ray_cluster.CPU_ALLOCATOR}
    asked["with an environment"] = task.options(runtime_env=allocator).remote()
found = {name: ray.get(one) for name, one in asked.items()}
if sys.argv[1] == "all":
    (row,) = ray.data.range(1).map_batches(rows, batch_size=1).take_all()
    found["Ray Data"] = json.loads(row["seen"])
    found["task after GPU tasks"] = ray.get(task.remote())
found |= {"driver": seen(), "of a node": gpus.num_of_node()}
print("FOUND" + json.dumps(found))
"""
NOTHING = ("task", "with an environment", "actor", "Ray Data", "task after GPU tasks")


@pytest.fixture(scope="module")
def cluster(forked_workers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    # as someone else starts it: nothing in its environment hides GPUs
    env = {**forked_workers, "CUDA_VISIBLE_DEVICES": DEVICES}
    cluster = LocalCluster(tmp_path_factory.mktemp("gpus"), cpus=3, env=env)
    try:
        cluster.start_head(more="--num-gpus=2")
        yield cluster
    finally:
        cluster.stop()


def seen(cluster: LocalCluster, start: str, **changes: str) -> dict[str, Any]:
    env = environment(**cluster.driver_env, **changes)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, start],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        cwd=ROOT,
        timeout=300,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND")), None)
    assert line is not None, done.stderr
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND"))
    return found


def test_what_asks_for_no_gpu_sees_none(cluster: LocalCluster) -> None:
    found = seen(cluster, "all")
    for name in NOTHING:
        assert found[name] == ["", 0], name
    for name, num_gpus in (("GPU task", 1), ("GPU actor", 1)):
        visible, own = found[name]
        assert (len(visible.split(",")), own) == (num_gpus, num_gpus), name
        assert set(visible.split(",")) <= set(DEVICES.split(",")), name
    assert found["driver"] == [DEVICES, 0], "a driver owns none, whatever it sees"
    assert found["of a node"] == 2


def test_a_job_that_hides_gpus_itself_starts(cluster: LocalCluster) -> None:
    job = json.dumps({"runtime_env": {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}}})
    found = seen(cluster, "connect", RAY_JOB_CONFIG_JSON_ENV_VAR=job)
    assert found["task"] == ["", 0]


def test_after_a_start_without_ours_nothing_counts_as_its_own(cluster: LocalCluster) -> None:
    found = seen(cluster, "bare")
    assert found["task"] == [DEVICES, 0], "Ray shows all GPUs, and the count of own GPUs decides"
    assert found["GPU task"][1] == 1
