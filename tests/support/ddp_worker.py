"""One of N gloo workers. It computes the loss, the averaged gradients and a few steps of each case; rank 0 writes them.

Run as `python ddp_worker.py FOLDER RANK NUM_WORKERS`. FOLDER/inputs.pt holds the cases."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.clip.model import build
from orchestrator.clip.parallel import full
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, TrainStep

CPU = torch.device("cpu")


def make_train_step(config: dict[str, Any], settings: dict[str, Any]) -> TrainStep:
    recipe = Recipe(grad_clip_norm=1.0, **settings)
    clip = build(
        name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0, loss=recipe.loss
    )
    return TrainStep(clip, recipe, device=CPU, rank=dist.get_rank(), num_ranks=dist.get_world_size())


def own_slots(inputs: dict[str, Any], mask: str) -> Batch:
    ranks = slice(dist.get_rank(), None, dist.get_world_size())
    return Batch(*(tensor[ranks] for tensor in (*inputs["batch"], inputs["masks"][mask])))


def run_case(inputs: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Run a step with learning rate 0 to get the clipped gradients, then some steps of a new train_step."""
    batch = own_slots(inputs, case["mask"])
    train_step = make_train_step(inputs["config"], case["settings"])
    losses = [torch.zeros(()) for _ in range(dist.get_world_size())]
    metrics = train_step.run(batch, lr=0.0, step=0)
    dist.all_gather(losses, metrics.loss)
    gradients = {
        name: full(weight.grad) for name, weight in train_step.model.named_parameters() if weight.grad is not None
    }
    result = {"losses": losses, "gradients": gradients, "grad_norm": metrics.grad_norm}
    if case["num_steps"]:
        result |= run_steps(inputs, case, batch)
    return result


def run_steps(inputs: dict[str, Any], case: dict[str, Any], batch: Batch) -> dict[str, Any]:
    train_step = make_train_step(inputs["config"], case["settings"])
    losses = [train_step.run(batch, lr=1e-3, step=step).loss for step in range(case["num_steps"])]
    assert train_step.first_bad_step() is None
    state = train_step.state()
    own_averages = running_averages(train_step)
    train_step.share_buffers()
    return {
        "step_losses": losses,
        "weights": dict(train_step.export().model.state_dict()),
        "state": state,
        "own_averages": own_averages,
        "averages": running_averages(train_step),
    }


def running_averages(train_step: TrainStep) -> list[torch.Tensor]:
    """Return the running averages of all batch norms in the exported model of every rank; empty without batch norms."""
    state = train_step.export().model.state_dict()
    own = torch.cat([torch.zeros(0), *(one.flatten() for name, one in state.items() if "running_" in name)])
    everyone = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return everyone


def continue_case(inputs: dict[str, Any], case: dict[str, Any], saved: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Restore a state, from any number of DDP or FSDP workers, and run one more step."""
    train_step = make_train_step(inputs["config"], case["settings"])
    train_step.restore(saved)
    train_step.run(own_slots(inputs, case["mask"]), lr=1e-3, step=case["num_steps"])
    return dict(train_step.export().model.state_dict())


def main(folder: Path, rank: int, num_workers: int) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous_{num_workers}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_workers)
    inputs = torch.load(folder / "inputs.pt")
    cases = {name: case for name, case in inputs["cases"].items() if num_workers in case["workers"]}
    results = {name: run_case(inputs, case) for name, case in cases.items()}
    continued = {
        name: continue_case(inputs, case, inputs["saved"]) for name, case in cases.items() if case.get("continues")
    }
    if rank == 0:
        torch.save({"results": results, "continued": continued}, folder / f"results_{num_workers}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
