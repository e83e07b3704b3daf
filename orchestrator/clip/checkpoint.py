"""All that a training run is between two steps, in one file: model, optimiser, loss scaler and the number of steps.

Keys: `model` (without DDP's prefix, so any number of workers continues it), `optimiser`, `scaler`, `step`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from orchestrator.clip.loop import Learner


def state(learner: Learner, step: int) -> dict[str, Any]:
    """The state after `step` optimiser steps. It refers to live tensors: save it before the next step."""
    return {
        "model": learner.unwrapped.state_dict(),
        "optimiser": learner.optimiser.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "step": step,
    }


def restore(learner: Learner, saved: dict[str, Any]) -> int:
    """Put `saved` into the learner, on every rank, and return the number of steps taken."""
    learner.unwrapped.load_state_dict(saved["model"])
    learner.optimiser.load_state_dict(saved["optimiser"])
    learner.scaler.load_state_dict(saved["scaler"])
    return saved["step"]


def save(saved: dict[str, Any], path: Path) -> None:
    """Write the file whole or not at all: under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial_path.open("wb") as file:
            torch.save(saved, file)
            file.flush()
            os.fsync(file.fileno())
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a file that `save` wrote, with tensors on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)
