"""Check the cluster files: against Ray's launcher and the Kubernetes schemas, and the commands that they name."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.cli import compose_config, for_hydra

FOLDER = Path(__file__).parent.parent.parent / "conf" / "cluster"
LAUNCHER, KUBERAY = ("aws", "gcp"), ("kuberay_cluster", "kuberay_job")
KUBERNETES = "1.31"
# the fields of the operator's custom resources that are used here; Kubernetes drops unknown fields
CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text())


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_launcher_accepts_the_cluster_files(name: str) -> None:
    config = prepare_config(read(name))
    validate_config(config)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "GPU" not in types["scoring"]["resources"]
    assert types["training"]["resources"]["GPU"] == 8
    assert sum(types[kind]["max_workers"] for kind in ("scoring", "training")) == config["max_workers"]


@pytest.mark.parametrize("name", KUBERAY)
def test_the_kubernetes_schemas_accept_the_cluster_files(name: str) -> None:
    manifest = read(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    spec = manifest["spec"]
    if manifest["kind"] == "RayJob":
        assert set(spec) <= JOB
        spec = spec["rayClusterSpec"]
    assert set(spec) <= CLUSTER
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert set(group) <= GROUP
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    gpus = [group for group in spec["workerGroupSpecs"] if "nvidia.com/gpu" in str(group["template"])]
    assert [group["groupName"] for group in gpus] == ["training"]


def test_the_slurm_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)


def commands() -> Iterator[tuple[str, str]]:
    """Yield (file, command) for every `orchestrator run` in the files."""
    for path in sorted(FOLDER.iterdir()):
        text = re.sub(r"\\?\n#? *", " ", path.read_text())
        for found in re.finditer(r"orchestrator (run [^\n]*?out=\S+(?: +cluster\.\S+)*)", text):
            yield path.name, found[1]


def test_the_commands_in_the_files_are_valid() -> None:
    found = list(commands())
    assert {name for name, _ in found} == {
        *(f"{name}.yml" for name in (*LAUNCHER, *KUBERAY)),
        "slurm.sh",
    }
    for name, command in found:
        config = compose_config(for_hydra(shlex.split(command)[1:]))
        assert config.out is not None, name
        assert "{00000..41455}" in str(config.source.uri)
        grows_to = (config.cluster.scales_to_cpus, config.cluster.scales_to_gpus)
        assert grows_to == (at_most(name.removesuffix(".yml")) if name.endswith(".yml") else (None, None)), name


def at_most(name: str) -> tuple[int, int]:
    """Return the CPUs of all scoring nodes and the GPUs of all training nodes of a file."""
    content = read(name)
    if name in LAUNCHER:
        nodes = content["available_node_types"]
        found = {kind: (node.get("max_workers"), node["resources"]) for kind, node in nodes.items()}
        cpu, gpu = "CPU", "GPU"
    else:
        spec = content["spec"].get("rayClusterSpec", content["spec"])
        found = {
            group["groupName"]: (
                group["maxReplicas"],
                group["template"]["spec"]["containers"][0]["resources"]["limits"],
            )
            for group in spec["workerGroupSpecs"]
        }
        cpu, gpu = "cpu", "nvidia.com/gpu"
    return (
        found["scoring"][0] * int(found["scoring"][1][cpu]),
        found["training"][0] * int(found["training"][1][gpu]),
    )
