"""A resumed run equals an uninterrupted run. A damaged checkpoint gives a one-line error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.clip import checkpoint, snapshot
from orchestrator.clip.model import build
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, TrainStep

CPU = torch.device("cpu")


def make_train_step(config: dict[str, Any], seed: int = 0, **settings: Any) -> TrainStep:
    clip = build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=seed)
    return TrainStep(clip, Recipe(**settings), device=CPU)


def weights(train_step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in train_step.model.state_dict().items()}


def test_a_state_can_be_restored_twice(tiny_config: dict[str, Any], batch: Batch) -> None:
    train_step = make_train_step(tiny_config, ema_decay=0.5)
    train_step.run(batch, lr=1e-2, step=0)
    saved = train_step.state()
    assert saved is not None
    after = []
    for _ in range(2):
        train_step.restore(saved)
        train_step.run(batch, lr=1e-2, step=1)
        after.append(train_step.export().model.state_dict())
    torch.testing.assert_close(dict(after[0]), dict(after[1]), rtol=0, atol=0)


@pytest.mark.parametrize("done", [0, 2])
def test_a_restored_train_step_continues_with_the_same_bits(
    done: int, tmp_path: Path, timm_config: dict[str, Any], batch: Batch
) -> None:
    path = tmp_path / "run" / "checkpoint.pt"
    whole, resumed = (make_train_step(timm_config, seed, ema_decay=0.9) for seed in (0, 1))
    for step in range(done):
        whole.run(batch, lr=1e-3, step=step)
    checkpoint.save({"learner": whole.state(), "step": done}, path)
    resumed.run(batch, lr=1e-2, step=0)
    saved = checkpoint.load(path)
    assert saved["step"] == done
    resumed.restore(saved["learner"])
    for train_step in (whole, resumed):
        for step in (done, done + 1):
            train_step.run(batch, lr=1e-3, step=step)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    expected, got = (dict(one.export().model.state_dict()) for one in (whole, resumed))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_state_is_a_copy_that_later_steps_do_not_change(tiny_config: dict[str, Any], batch: Batch) -> None:
    train_step = make_train_step(tiny_config, ema_decay=0.5)
    train_step.run(batch, lr=1e-2, step=0)
    saved, before = train_step.state(), weights(train_step)
    moments = train_step.optimiser.state[train_step.model.text_projection]["exp_avg"].clone()
    for step in (1, 2):
        train_step.run(batch, lr=1e-2, step=step)
    assert saved is not None
    torch.testing.assert_close(dict(saved["model"]), before, rtol=0, atol=0)
    torch.testing.assert_close(saved["optimiser"]["state"]["text_projection"]["exp_avg"], moments, rtol=0, atol=0)


def test_an_exported_model_is_an_independent_copy(tiny_config: dict[str, Any], batch: Batch) -> None:
    train_step = make_train_step(tiny_config)
    train_step.run(batch, lr=1e-2, step=0)
    exported, before = train_step.export(), weights(train_step)
    train_step.run(batch, lr=1e-2, step=1)
    torch.testing.assert_close(dict(exported.model.state_dict()), before, rtol=0, atol=0)
    assert not torch.equal(train_step.model.text_projection, before["text_projection"])
    assert type(exported.model) is type(train_step.model)


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


def test_a_snapshot_copies_only_what_training_changes() -> None:
    live, copied = torch.ones(4), torch.ones(4)
    found = snapshot._apart({"live": live, "part": live[1:], "copied": copied, "step": 3}, {snapshot._address(live)})
    live.zero_()
    assert found["copied"] is copied, "a copy from a GPU is not copied again"
    assert torch.equal(found["live"], torch.ones(4))
    assert torch.equal(found["part"], torch.ones(3))
    assert found["step"] == 3
