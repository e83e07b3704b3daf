"""A resumed run equals an uninterrupted run. A damaged checkpoint gives a one-line error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.clip import checkpoint
from orchestrator.clip.model import build
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, Learner

CPU = torch.device("cpu")


def learner(config: dict[str, Any], seed: int = 0, **settings: Any) -> Learner:
    clip = build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=seed)
    return Learner(clip, Recipe(**settings), device=CPU)


def weights(learning: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learning.model.state_dict().items()}


def test_a_state_can_be_restored_twice(tiny_config: dict[str, Any], batch: Batch) -> None:
    learning = learner(tiny_config, ema_decay=0.5)
    learning.step(batch, lr=1e-2, step=0)
    saved = learning.state()
    assert saved is not None
    after = []
    for _ in range(2):
        learning.restore(saved)
        learning.step(batch, lr=1e-2, step=1)
        after.append(learning.export().model.state_dict())
    torch.testing.assert_close(dict(after[0]), dict(after[1]), rtol=0, atol=0)


@pytest.mark.parametrize("done", [0, 2])
def test_a_restored_learner_continues_with_the_same_bits(
    done: int, tmp_path: Path, timm_config: dict[str, Any], batch: Batch
) -> None:
    path = tmp_path / "run" / "checkpoint.pt"
    whole, resumed = (learner(timm_config, seed, ema_decay=0.9) for seed in (0, 1))
    for step in range(done):
        whole.step(batch, lr=1e-3, step=step)
    checkpoint.save({"learner": whole.state(), "step": done}, path)
    resumed.step(batch, lr=1e-2, step=0)
    saved = checkpoint.load(path)
    assert saved["step"] == done
    resumed.restore(saved["learner"])
    for learning in (whole, resumed):
        for step in (done, done + 1):
            learning.step(batch, lr=1e-3, step=step)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    expected, got = (dict(one.export().model.state_dict()) for one in (whole, resumed))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_state_is_a_copy_that_later_steps_do_not_change(tiny_config: dict[str, Any], batch: Batch) -> None:
    learning = learner(tiny_config, ema_decay=0.5)
    learning.step(batch, lr=1e-2, step=0)
    saved, before = learning.state(), weights(learning)
    moments = learning.optimiser.state[learning.model.text_projection]["exp_avg"].clone()
    for step in (1, 2):
        learning.step(batch, lr=1e-2, step=step)
    assert saved is not None
    torch.testing.assert_close(dict(saved["model"]), before, rtol=0, atol=0)
    torch.testing.assert_close(saved["optimiser"]["state"]["text_projection"]["exp_avg"], moments, rtol=0, atol=0)


def test_an_exported_model_is_an_independent_copy(tiny_config: dict[str, Any], batch: Batch) -> None:
    learning = learner(tiny_config)
    learning.step(batch, lr=1e-2, step=0)
    exported, before = learning.export(), weights(learning)
    learning.step(batch, lr=1e-2, step=1)
    torch.testing.assert_close(dict(exported.model.state_dict()), before, rtol=0, atol=0)
    assert not torch.equal(learning.model.text_projection, before["text_projection"])
    assert type(exported.model) is type(learning.model)


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"step": 5, "weights": torch.arange(1000.0)}, path)

    def full_disk(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"step": 6}, path)
    assert checkpoint.load(path)["step"] == 5
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999, 1.0])
@pytest.mark.parametrize("damage", ["cut off", "a bit flipped"])
def test_a_damaged_file_is_named_in_a_one_line_error(damage: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"step": 5, "weights": torch.arange(100_000.0)}, path)
    content = bytearray(path.read_bytes())
    place = int(share * (len(content) - 1))
    if damage == "cut off":
        path.write_bytes(content[:place])
    else:
        content[place] ^= 1
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint .*checkpoint\.pt is damaged") as raised:
        checkpoint.load(path)
    assert "\n" not in str(raised.value)
