"""A run that stops and continues is the run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.clip import checkpoint
from orchestrator.clip.loop import Batch, Learner
from orchestrator.clip.loss import MaskedClipLoss
from orchestrator.clip.model import build
from orchestrator.clip.optimiser import adamw


def learner(config: dict[str, Any], seed: int) -> Learner:
    clip = build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=seed)
    optimiser = adamw(clip.model, lr=1e-3, weight_decay=0.2, beta1=0.9, beta2=0.98, eps=1e-6)
    return Learner(
        model=clip.model,
        loss=MaskedClipLoss(),
        optimiser=optimiser,
        precision="fp32",
        grad_clip_norm=None,
        device=torch.device("cpu"),
        mean=clip.preprocess_cfg["mean"],
        std=clip.preprocess_cfg["std"],
    )


def test_a_restored_learner_continues_bit_by_bit(tmp_path: Path, timm_config: dict[str, Any], batch: Batch) -> None:
    whole = learner(timm_config, seed=0)
    for step in range(3):
        whole.step(batch, lr=1e-3)
        if step == 1:
            checkpoint.save(checkpoint.state(whole, step=2), tmp_path / "run" / "checkpoint.pt")
    resumed = learner(timm_config, seed=1)
    assert checkpoint.restore(resumed, checkpoint.load(tmp_path / "run" / "checkpoint.pt")) == 2
    resumed.step(batch, lr=1e-3)
    expected, got = (dict(one.unwrapped.state_dict()) for one in (whole, resumed))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    saved = checkpoint.state(learner(tiny_config, seed=0), step=5)
    checkpoint.save(saved, path)

    def full_disk(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({**saved, "step": 6}, path)
    assert checkpoint.load(path)["step"] == 5
    assert list(tmp_path.iterdir()) == [path]
