"""Where Ray puts work: who sees a GPU, and on which device each thread of a training worker is.

Ray is imported in the functions: when it is imported, it reads how to present itself to the cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch

from tests.gpu.harness import Check, at_most, equal, figure
from tests.gpu.lab import Lab

SEES_NOTHING = "0 devices"


def hidden(lab: Lab) -> Iterator[Check]:
    """What requests no GPU sees none; what requests one sees one."""
    import ray

    ray_cluster = _connected()
    yield figure("GPUs of the cluster", ray_cluster.num_gpus())
    task: Any = ray.remote(_devices)
    actor: Any = ray.remote(_Looking)
    for what, asked in {
        "a task without a GPU": task.options(num_gpus=0).remote(),
        "an actor without a GPU": actor.options(num_gpus=0).remote().devices.remote(),
    }.items():
        yield equal(f"{what} sees", ray.get(asked), SEES_NOTHING)
    (row,) = ray.data.range(1).map_batches(_rows, batch_size=1).take_all()
    yield equal("a task of Ray Data sees", row["devices"], SEES_NOTHING)
    if not lab.is_dry:
        yield equal("a task with a GPU sees", ray.get(task.options(num_gpus=1).remote()), "1 devices")


def _connected() -> Any:
    """Connect to the call's cluster; return the module that knows it."""
    from orchestrator.config import ClusterConfig
    from orchestrator.engine import ray_cluster

    ray_cluster.connect(ClusterConfig())
    return ray_cluster


def _devices() -> str:
    return f"{torch.cuda.device_count()} devices"


class _Looking:
    def devices(self) -> str:
        return _devices()


def _rows(batch: dict[str, Any]) -> dict[str, Any]:
    return {"devices": [_devices()]}


def trainer(lab: Lab) -> Iterator[Check]:
    """One worker of Ray Train takes steps on its device, and so do its threads."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    _connected()
    storage = lab.scratch / "train"
    report = lab.scratch / "report.pt"
    resources = {"CPU": 1.0} | ({} if lab.is_dry else {"GPU": 1.0})
    TorchTrainer(
        _worker,
        train_loop_config={"lab": lab, "report": str(report)},
        torch_config=TorchConfig(backend=lab.size("nccl", "gloo")),
        scaling_config=ScalingConfig(num_workers=1, use_gpu=not lab.is_dry, resources_per_worker=resources),
        run_config=RunConfig(name="train", storage_path=str(storage)),
    ).fit()
    found = torch.load(report)
    for thread, device in found["devices"].items():
        yield equal(f"device of the {thread} thread", device, str(lab.size("cuda:0", "cpu")))
    yield equal("backend of the process group", found["backend"], lab.size("nccl", "gloo"))
    yield at_most("loss of the last step / loss of the first", found["losses"][-1] / found["losses"][0], 1.0)


def _worker(loop_config: dict[str, Any]) -> None:
    # in a process of Ray Train
    import ray.train.torch
    import torch.distributed as dist

    from tests.gpu.models import made_up, train_step

    lab, device = loop_config["lab"], ray.train.torch.get_device()
    devices = {"main": _device_of_thread(lab)}
    for name in ("loader", "decoder"):
        thread = threading.Thread(target=lambda name=name: devices.update({name: _device_of_thread(lab)}))
        thread.start()
        thread.join()
    step = train_step(lab, "ViT-B-32", device, precision="bf16")
    batch = made_up(lab, step.clip, lab.size(256, 4))
    losses = [step.run(batch, lr=1e-4, step=number).loss.item() for number in range(lab.size(10, 4))]
    torch.save({"devices": devices, "backend": dist.get_backend(), "losses": losses}, loop_config["report"])


def _device_of_thread(lab: Lab) -> str:
    return "cpu" if lab.is_dry else f"cuda:{torch.cuda.current_device()}"
