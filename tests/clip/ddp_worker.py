"""One of N gloo workers: the loss and the averaged gradients of each case, then a few steps; rank 0 writes them.

Run as `python ddp_worker.py FOLDER RANK NUM_WORKERS`; FOLDER/inputs.pt says what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from orchestrator.clip.loop import Batch, Learner
from orchestrator.clip.loss import MaskedClipLoss
from orchestrator.clip.model import Clip, build
from orchestrator.clip.optimiser import adamw

CPU = torch.device("cpu")


def learner(config: dict[str, Any], local_loss: bool) -> tuple[Clip, Learner]:
    clip = build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0)
    loss = MaskedClipLoss(local_loss=local_loss, rank=dist.get_rank(), world_size=dist.get_world_size())
    model = DistributedDataParallel(clip.model)
    optimiser = adamw(model, lr=1e-3, weight_decay=0.2, beta1=0.9, beta2=0.98, eps=1e-6)
    preprocess = clip.preprocess_cfg
    return clip, Learner(
        model=model,
        loss=loss,
        optimiser=optimiser,
        precision="fp32",
        grad_clip_norm=1.0,
        device=CPU,
        mean=preprocess["mean"],
        std=preprocess["std"],
    )


def own_slots(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[dist.get_rank() :: dist.get_world_size()]


def case(inputs: dict[str, Any], local_loss: bool, valid: torch.Tensor) -> dict[str, Any]:
    clip, learning = learner(inputs["config"], local_loss)
    out = learning.model(learning.normalise(own_slots(inputs["images"])), own_slots(inputs["texts"]))
    loss = learning.loss(out["image_features"], out["text_features"], out["logit_scale"], own_slots(valid))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in clip.model.named_parameters()}
    losses = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(losses, loss.detach())
    return {"losses": losses, "gradients": gradients}


def steps(inputs: dict[str, Any], local_loss: bool, valid: torch.Tensor) -> dict[str, Any]:
    clip, learning = learner(inputs["config"], local_loss)
    batch = Batch(own_slots(inputs["images"]), own_slots(inputs["texts"]), own_slots(valid))
    losses = [learning.step(batch, lr=1e-3).loss for _ in range(3)]
    return {"losses": losses, "weights": clip.model.state_dict()}


def main(folder: Path, rank: int, num_workers: int) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous_{num_workers}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_workers)
    inputs = torch.load(folder / "inputs.pt")
    results = {
        (what.__name__, local_loss, name): what(inputs, local_loss, inputs["masks"][name])
        for local_loss in (False, True)
        for what, names in ((case, list(inputs["masks"])), (steps, ["uneven"]))
        for name in names
    }
    if dist.get_rank() == 0:
        torch.save(results, folder / f"results_{num_workers}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
