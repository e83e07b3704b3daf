"""Chunks, gradient checkpointing and compilation change the cost of a step, not its result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator.clip.model import Clip, build
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, StepMetrics, TrainStep

CPU = torch.device("cpu")
UNEVEN = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1], dtype=torch.bool)


def fresh(config: dict[str, Any], loss: Any = "clip") -> Clip:
    return build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0, loss=loss)


def gradients(
    config: dict[str, Any], batch: Batch, **settings: Any
) -> tuple[StepMetrics, dict[str, torch.Tensor | None]]:
    return gradients_of(TrainStep(fresh(config, settings.get("loss", "clip")), Recipe(**settings), device=CPU), batch)


def gradients_of(train_step: TrainStep, batch: Batch) -> tuple[StepMetrics, dict[str, torch.Tensor | None]]:
    metrics = train_step.run(batch, lr=0.0, step=3)
    return metrics, {name: weight.grad for name, weight in train_step.model.named_parameters()}


def assert_same(one: Any, other: Any, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    torch.testing.assert_close(vars(one[0]), vars(other[0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one[1], other[1], rtol=rtol, atol=atol)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("accumulation", [2, 3, 8, 100])
def test_chunks_give_the_gradients_of_the_whole_batch(
    accumulation: int, loss: str, tiny_config: dict[str, Any], batch: Batch
) -> None:
    masked = replace(batch, valid=UNEVEN)
    whole = gradients(tiny_config, masked, loss=loss)
    assert_same(gradients(tiny_config, masked, loss=loss, accumulation=accumulation), whole)
    assert whole[1]["logit_scale"] is not None


def test_chunks_give_the_gradients_of_a_locked_model(tiny_config: dict[str, Any], batch: Batch) -> None:
    whole = gradients(tiny_config, batch, lock_image=True)
    assert_same(gradients(tiny_config, batch, lock_image=True, accumulation=2), whole)
    assert whole[1]["visual.proj"] is None


def test_both_passes_over_a_chunk_use_the_same_dropout(tiny_config: dict[str, Any], batch: Batch) -> None:
    def dropping(accumulation: int, step: int) -> list[torch.Tensor]:
        clip = fresh(tiny_config)
        clip.model.transformer.resblocks[0].attn.dropout = 0.5
        train_step = TrainStep(clip, Recipe(accumulation=accumulation), device=CPU)
        seen: list[torch.Tensor] = []
        clip.model.transformer.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        train_step.run(batch, lr=0.0, step=step)
        return seen

    first, second, *again = dropping(2, step=5)
    torch.testing.assert_close(again, [first, second], rtol=0, atol=0)
    assert not torch.equal(first, dropping(2, step=6)[0])
    state = torch.get_rng_state()
    torch.testing.assert_close(dropping(2, step=5)[0], first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_config: dict[str, Any], batch: Batch) -> None:
    expected = gradients(tiny_config, batch)
    assert_same(gradients(tiny_config, batch, grad_checkpointing=True), expected)
    assert_same(gradients(tiny_config, batch, grad_checkpointing=True, accumulation=2), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_step_gives_the_same_result(tiny_config: dict[str, Any], batch: Batch) -> None:
    keyed = replace(batch, keys=torch.arange(8))
    settings = {"patch_dropout": 0.5, "accumulation": 2}
    train_step = TrainStep(fresh(tiny_config), Recipe(compile=True, **settings), device=CPU)
    # fused kernels add in another order, so the last bits differ
    assert_same(gradients_of(train_step, keyed), gradients(tiny_config, keyed, **settings), rtol=1e-3, atol=1e-5)
    saved = train_step.state()
    assert saved is not None
    assert saved["model"].keys() == fresh(tiny_config).model.state_dict().keys()
