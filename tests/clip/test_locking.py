"""A locked tower does not change. The moving average covers exactly the trained weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.clip.model import Clip, build
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, TrainStep

CPU = torch.device("cpu")


def moved(train_step: TrainStep, batch: Batch, steps: int = 2) -> set[str]:
    """Return the names of the parameters and buffers that change in some steps."""
    before = {name: tensor.clone() for name, tensor in train_step.model.state_dict().items()}
    for step in range(steps):
        train_step.run(batch, lr=1e-2, step=step)
    return {name for name, tensor in train_step.model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_locked_text_tower_does_not_change(custom_text: bool, tiny_config: dict[str, Any], batch: Batch) -> None:
    config = {**tiny_config, "custom_text": custom_text}
    clip = build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0)
    train_step = TrainStep(clip, Recipe(lock_text=True), device=CPU)
    changed = moved(train_step, batch)
    assert changed == {name for name in clip.model.state_dict() if name.startswith(("visual.", "logit_scale"))}
    exported = train_step.export().model
    assert all(weight.requires_grad for weight in exported.parameters())


def test_only_the_unlocked_groups_of_a_locked_image_tower_change(tiny_clip: Clip, batch: Batch) -> None:
    changed = moved(TrainStep(tiny_clip, Recipe(lock_image=True, lock_image_unlocked_groups=1), device=CPU), batch)
    assert {name for name in changed if name.startswith("visual.")} == {"visual.proj"}
    assert "token_embedding.weight" in changed


@pytest.mark.parametrize("freeze", [False, True])
def test_batch_norm_statistics_of_a_locked_tower_change_unless_frozen(
    freeze: bool, timm_clip: Clip, batch: Batch
) -> None:
    train_step = TrainStep(timm_clip, Recipe(lock_image=True, lock_image_freeze_bn_stats=freeze), device=CPU)
    changed = {name for name in moved(train_step, batch) if name.startswith("visual.trunk.")}
    assert bool(changed) != freeze
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    exported = train_step.export().model.state_dict()
    assert "visual.trunk.bn1.num_batches_tracked" in exported


def test_towers_that_cannot_be_locked_give_one_line_errors(tiny_clip: Clip, tiny_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="both towers are locked"):
        TrainStep(tiny_clip, Recipe(lock_image=True, lock_text=True), device=CPU)
    resnet = {**tiny_config["vision_cfg"], "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
    clip = build(
        name=None,
        config={**tiny_config, "vision_cfg": resnet},
        pretrained=None,
        image_size=None,
        context_length=None,
        seed=0,
    )
    with pytest.raises(ValueError, match="lock_image_unlocked_groups=2: partial locking not currently supported"):
        TrainStep(clip, Recipe(lock_image=True, lock_image_unlocked_groups=2), device=CPU)


def test_the_moving_average_equals_the_recurrence_and_is_exported(tiny_clip: Clip, batch: Batch) -> None:
    train_step = TrainStep(tiny_clip, Recipe(ema_decay=0.8, lock_image=True), device=CPU)
    expected = {name: tensor.clone() for name, tensor in tiny_clip.model.state_dict().items()}
    # the decay warms up: 1/10, 2/11, 3/12; later it is the configured decay
    for step, decay in [(0, 0.1), (1, 2 / 11), (2, 0.25), (100, 0.8)]:
        train_step.run(batch, lr=1e-2, step=step)
        for name, tensor in train_step.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    torch.testing.assert_close(dict(train_step.export().model.state_dict()), expected, rtol=1e-5, atol=1e-7)
    assert train_step.average is not None
    assert not any(name.startswith("visual.") for name in train_step.average.weights())


def test_the_moving_average_copies_batch_norm_statistics(timm_clip: Clip, batch: Batch) -> None:
    train_step = TrainStep(timm_clip, Recipe(ema_decay=0.8), device=CPU)
    moved(train_step, batch)
    running_mean = train_step.export().model.state_dict()["visual.trunk.bn1.running_mean"]
    assert torch.equal(running_mean, train_step.model.state_dict()["visual.trunk.bn1.running_mean"])
