"""The same loss, gradients and steps for one process without DDP and for 1 and 2 gloo workers with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch

import orchestrator
from orchestrator.clip.loop import Batch, Learner
from orchestrator.clip.loss import MaskedClipLoss
from orchestrator.clip.model import Clip, build
from orchestrator.clip.optimiser import adamw

# with two workers the even slots are rank 0's
MASKS = {
    "all": [1, 1, 1, 1, 1, 1, 1, 1],
    "uneven": [1, 0, 1, 0, 1, 1, 0, 0],
    "none on one rank": [1, 0, 1, 0, 1, 0, 1, 0],
    "none": [0, 0, 0, 0, 0, 0, 0, 0],
}


def fresh(config: dict[str, Any]) -> Clip:
    return build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0)


def single_process_learner(clip: Clip) -> Learner:
    return Learner(
        model=clip.model,
        loss=MaskedClipLoss(),
        optimiser=adamw(clip.model, lr=1e-3, weight_decay=0.2, beta1=0.9, beta2=0.98, eps=1e-6),
        precision="fp32",
        grad_clip_norm=1.0,
        device=torch.device("cpu"),
        mean=clip.preprocess_cfg["mean"],
        std=clip.preprocess_cfg["std"],
    )


def reference_gradients(config: dict[str, Any], batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """open_clip's loss on the valid pairs alone: nothing of the mask or of DDP."""
    clip = fresh(config)
    if not batch.valid.any():
        return torch.zeros(()), {name: torch.zeros_like(p) for name, p in clip.model.named_parameters()}
    images = single_process_learner(clip).normalise(batch.images[batch.valid])
    out = clip.model(images, batch.texts[batch.valid])
    loss = open_clip.ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in clip.model.named_parameters()}


def reference_steps(config: dict[str, Any], batch: Batch) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    clip = fresh(config)
    learner = single_process_learner(clip)
    losses = [learner.step(batch, lr=1e-3).loss for _ in range(3)]
    return losses, dict(clip.model.state_dict())


def start_worker(folder: Path, rank: int, num_workers: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(orchestrator.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("ddp_worker.py")), str(folder), str(rank), str(num_workers)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_number_of_workers_changes_nothing(tmp_path: Path, tiny_config: dict[str, Any], batch: Batch) -> None:
    masks = {name: torch.tensor(mask, dtype=torch.bool) for name, mask in MASKS.items()}
    inputs = {"config": tiny_config, "images": batch.images, "texts": batch.texts, "masks": masks}
    torch.save(inputs, tmp_path / "inputs.pt")
    workers = [start_worker(tmp_path, rank, num_workers) for num_workers in (1, 2) for rank in range(num_workers)]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors[-3000:]
    batches = {name: Batch(batch.images, batch.texts, valid) for name, valid in masks.items()}
    gradients = {name: reference_gradients(tiny_config, global_batch) for name, global_batch in batches.items()}
    step_losses, step_weights = reference_steps(tiny_config, batches["uneven"])
    for num_workers in (1, 2):
        results = torch.load(tmp_path / f"results_{num_workers}.pt")
        assert len(results) == 2 * (len(MASKS) + 1)
        for (what, _, name), result in results.items():
            if what == "case":
                loss, expected = gradients[name]
                torch.testing.assert_close(result["losses"], [loss] * num_workers, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(result["gradients"], expected, rtol=1e-4, atol=1e-6)
            else:
                torch.testing.assert_close(result["losses"], step_losses, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(result["weights"], step_weights, rtol=1e-4, atol=1e-4)
