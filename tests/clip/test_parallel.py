"""Losses, gradients and steps with 1, 2 and 4 gloo workers equal those of open_clip's loss in one process.

This holds for every way in which the recipe computes the loss."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.loss import SigLipLoss

import orchestrator
from orchestrator.clip.model import Clip, build
from orchestrator.clip.preprocessing import Normaliser
from orchestrator.clip.recipe import LossName, Recipe
from orchestrator.clip.train_step import Batch, TrainStep
from tests.support import ddp_worker, fork_server

CPU = torch.device("cpu")
# with two workers rank 0 has the even slots; with four workers it has slots 0 and 4
MASKS = {
    "all": [1, 1, 1, 1, 1, 1, 1, 1],
    "uneven": [1, 0, 1, 0, 1, 1, 0, 0],
    "none on one rank": [1, 0, 1, 0, 1, 0, 1, 0],
    "none": [0, 0, 0, 0, 0, 0, 0, 0],
}
NUM_STEPS = 3


def make_cases() -> dict[str, dict[str, Any]]:
    """Return, by name, the settings, the mask, the numbers of workers, and the number of steps after the gradients."""
    every = (1, 2, 4)
    cases = {}
    for local_loss in (False, True):
        for mask in MASKS:
            steps = NUM_STEPS if mask == "uneven" else 0
            settings: dict[str, Any] = {"local_loss": local_loss}
            continues = mask == "uneven" and not local_loss
            cases[f"{mask}, local_loss={local_loss}"] = case(
                settings, mask, every, num_steps=steps, continues=continues
            )
    for accumulation, local_loss in ((2, True), (4, False)):
        settings = {"accumulation": accumulation, "local_loss": local_loss}
        cases[f"{accumulation} chunks"] = case(settings, "uneven", (1, 2), num_steps=NUM_STEPS)
    for local_loss in (False, True):
        settings = {"loss_rows": 3, "local_loss": local_loss}
        cases[f"by rows, local_loss={local_loss}"] = case(settings, "uneven", every, num_steps=NUM_STEPS)
    cases["siglip by rows"] = case({"loss": "siglip", "loss_rows": 1}, "uneven", every, num_steps=NUM_STEPS)
    for mask in MASKS:
        cases[f"{mask}, siglip"] = case({"loss": "siglip"}, mask, every, num_steps=0)
    cases["siglip in 2 chunks"] = case({"loss": "siglip", "accumulation": 2}, "uneven", (1, 2), num_steps=NUM_STEPS)
    for accumulation in (1, 2):
        settings = {"parallel": "fsdp", "accumulation": accumulation}
        cases[f"fsdp, {accumulation} chunks"] = case(
            settings, "uneven", (2,), num_steps=NUM_STEPS, continues=accumulation == 1
        )
    return cases


def case(settings: dict[str, Any], mask: str, workers: tuple[int, ...], **rest: Any) -> dict[str, Any]:
    return {"settings": settings, "mask": mask, "workers": workers, **rest}


CASES = make_cases()


def fresh(config: dict[str, Any], loss: LossName) -> Clip:
    return build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0, loss=loss)


def recipe(**settings: Any) -> Recipe:
    return Recipe(grad_clip_norm=1.0, **settings)


def reference_gradients(
    config: dict[str, Any], batch: Batch, loss: LossName
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return open_clip's loss on the valid pairs only, with its gradients: no mask, no chunks, no DDP."""
    clip = fresh(config, loss)
    if not batch.valid.any():
        return torch.zeros(()), {name: torch.zeros_like(p) for name, p in clip.model.named_parameters()}
    normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], CPU)
    out = clip.model(normalise(batch.images[batch.valid]), batch.texts[batch.valid])
    theirs = SigLipLoss() if loss == "siglip" else open_clip.ClipLoss()
    value = theirs(**out)
    value.backward()
    return value.detach(), {name: parameter.grad for name, parameter in clip.model.named_parameters()}


def reference_steps(config: dict[str, Any], batch: Batch, loss: LossName) -> tuple[list[torch.Tensor], TrainStep]:
    train_step = TrainStep(fresh(config, loss), recipe(loss=loss), device=CPU)
    return [train_step.run(batch, lr=1e-3, step=step).loss for step in range(NUM_STEPS)], train_step


def run_workers(folder: Path, inputs: dict[str, Any], num_workers: int) -> dict[str, Any]:
    torch.save(inputs, folder / "inputs.pt")
    workers = [start_worker(folder, rank, num_workers) for rank in range(num_workers)]
    for worker in workers:
        _, errors = worker.communicate(timeout=550)
        assert worker.returncode == 0, errors[-3000:]
    return torch.load(folder / f"results_{num_workers}.pt")


def start_worker(folder: Path, rank: int, num_workers: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(orchestrator.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [*fork_server.COMMAND, str(Path(ddp_worker.__file__)), str(folder), str(rank), str(num_workers)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def clipped(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    return {name: gradient * min(1.0, 1.0 / max(norm, 1e-6)) for name, gradient in gradients.items()}


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_number_of_workers_changes_no_loss_gradient_or_weight(
    num_workers: int, tmp_path: Path, tiny_config: dict[str, Any], batch: Batch
) -> None:
    masks = {name: torch.tensor(mask, dtype=torch.bool) for name, mask in MASKS.items()}
    batches = {name: Batch(batch.images, batch.texts, valid) for name, valid in masks.items()}
    references = {loss: reference_steps(tiny_config, batches["uneven"], loss) for loss in ("clip", "siglip")}
    weights = {loss: dict(train_step.export().model.state_dict()) for loss, (_, train_step) in references.items()}
    train_step = references["clip"][1]
    inputs = {"config": tiny_config, "batch": (batch.images, batch.texts), "masks": masks, "cases": CASES}
    found = run_workers(tmp_path, inputs | {"saved": train_step.state()}, num_workers)
    train_step.run(batches["uneven"], lr=1e-3, step=NUM_STEPS)
    one_more = dict(train_step.export().model.state_dict())

    assert found["results"].keys() == {name for name, case in CASES.items() if num_workers in case["workers"]}
    for name, result in found["results"].items():
        loss_name = CASES[name]["settings"].get("loss", "clip")
        loss, gradients = reference_gradients(tiny_config, batches[CASES[name]["mask"]], loss_name)
        close(result["losses"], [loss] * num_workers, 1e-5, 1e-6, name)
        close(result["gradients"], clipped(gradients), 1e-4, 1e-6, name)
        if CASES[name]["num_steps"]:
            close(result["step_losses"], references[loss_name][0], 1e-4, 1e-5, name)
            close(result["weights"], weights[loss_name], 1e-4, 1e-4, name)
            train_step = TrainStep(fresh(tiny_config, loss_name), recipe(loss=loss_name), device=CPU)
            train_step.restore(result["state"])
            close(
                dict(train_step.export().model.state_dict()),
                result["weights"],
                0,
                0,
                f"{name}, in one process",
            )
    for name, after in found["continued"].items():
        close(after, one_more, 1e-4, 1e-4, f"{name}, continued")


def close(got: Any, expected: Any, rtol: float, atol: float, where: str) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, msg=lambda message: f"{where}: {message}")


@pytest.mark.usefixtures("forks")
def test_fsdp_in_bf16_gives_the_losses_of_ddp_but_for_rounding(
    tmp_path: Path, tiny_config: dict[str, Any], batch: Batch
) -> None:
    settings: dict[str, dict[str, Any]] = {
        "ddp": {},
        "fsdp": {"parallel": "fsdp"},
        "fsdp in chunks": {"parallel": "fsdp", "accumulation": 2, "grad_checkpointing": True},
    }
    cases = {
        name: case({"precision": "bf16", **one}, "uneven", (2,), num_steps=NUM_STEPS) for name, one in settings.items()
    }
    masks = {name: torch.tensor(mask, dtype=torch.bool) for name, mask in MASKS.items()}
    inputs = {"config": tiny_config, "batch": (batch.images, batch.texts), "masks": masks, "cases": cases, "saved": {}}
    found = run_workers(tmp_path, inputs, 2)["results"]
    for name in ("fsdp", "fsdp in chunks"):
        close(found[name]["step_losses"], found["ddp"]["step_losses"], 1e-2, 1e-2, name)
        close(found[name]["gradients"], found["ddp"]["gradients"], 5e-2, 1e-2, name)
        # what is saved keeps the weights in float32
        assert {weight.dtype for weight in found[name]["state"]["model"].values()} <= {torch.float32, torch.int64}


@pytest.mark.usefixtures("forks")
def test_every_rank_evaluates_the_same_batch_norms(tmp_path: Path, timm_config: dict[str, Any], batch: Batch) -> None:
    cases = {name: case({"parallel": name}, "all", (2,), num_steps=NUM_STEPS) for name in ("ddp", "fsdp")}
    masks = {"all": torch.tensor(MASKS["all"], dtype=torch.bool)}
    inputs = {"config": timm_config, "batch": (batch.images, batch.texts), "masks": masks, "cases": cases, "saved": {}}
    for name, result in run_workers(tmp_path, inputs, 2)["results"].items():
        first, second = result["own_averages"]
        assert len(first), name
        # each rank has seen other images
        assert not torch.equal(first, second), name
        assert torch.equal(result["averages"][0], first), name
        assert torch.equal(result["averages"][1], first), name
