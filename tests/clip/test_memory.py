"""The memory of a step is measured, and the cheapest way to compute it that fits is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator.clip import activations, memory
from orchestrator.clip.activations import Activations, peak_bytes
from orchestrator.clip.memory import StepMemory
from orchestrator.clip.model import Clip, build
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, TrainStep

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GB = 1e9


def wide_config() -> dict[str, Any]:
    """Towers with activations that are larger than their weights, even for a few pairs."""
    return {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 2, "width": 64, "head_width": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
    }


@pytest.fixture(scope="module")
def wide() -> Clip:
    return build(name=None, config=wide_config(), pretrained=None, image_size=None, context_length=None, seed=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_on_fake_tensors_is_the_memory_of_a_real_pass(checkpointing: bool, wide: Clip) -> None:
    recipe = Recipe(grad_checkpointing=checkpointing)
    towers = activations._towers(wide, recipe, CPU)
    pairs = 1024
    real = peak_bytes(lambda: activations._pass(wide, towers, recipe, CPU, pairs, None), CPU)
    assert activations.measure(wide, recipe, CPU).bytes(pairs) == pytest.approx(real, rel=0.03)


def test_measuring_changes_neither_the_model_nor_the_random_state(wide: Clip) -> None:
    before = {name: tensor.clone() for name, tensor in wide.model.state_dict().items()}
    state = torch.get_rng_state()
    activations.measure(wide, Recipe(precision="bf16"), GPU, num_tokens=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in wide.model.parameters())
    torch.testing.assert_close(dict(wide.model.state_dict()), before, rtol=0, atol=0)


def test_activations_follow_precision_captions_checkpointing_and_patch_dropout(wide: Clip) -> None:
    def per_pair(num_tokens: int | None = None, **settings: Any) -> float:
        return activations.measure(wide, Recipe(**settings), GPU, num_tokens=num_tokens).per_pair

    plain = per_pair()
    assert per_pair(precision="bf16") < 0.7 * plain
    assert per_pair(grad_checkpointing=True) < 0.7 * plain
    assert per_pair(patch_dropout=0.5) < 0.8 * plain
    assert per_pair(8) < 0.9 * plain
    assert per_pair(8, trim_captions=False) == pytest.approx(plain, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("num_tokens", "expected"), [(32, 54), (77, 77)])
def test_the_memory_of_a_known_model(num_tokens: int, expected: float) -> None:
    """2,048 pairs of ViT-B/32 in bf16 on one GPU, in GB, as another program traced them."""
    clip = build(name="ViT-B-32", config=None, pretrained=None, image_size=None, context_length=None, seed=0)
    found = memory.step_memory(clip, Recipe(precision="bf16"), GPU, slots=2048, num_ranks=1, num_tokens=num_tokens)
    assert found.peak(Recipe(precision="bf16")) / GB == pytest.approx(expected, rel=0.05)


def laion(**changes: Any) -> StepMemory:
    """One of eight ranks with 4,096 pairs of ViT-B/32, in figures that `activations` measures for bf16."""
    one = StepMemory(
        weights=605_000_000,
        trained=605_000_000,
        image_bytes=150_528,
        plain=Activations(fixed=250_000_000, per_pair=35_400_000),
        checkpointed=Activations(fixed=250_000_000, per_pair=4_790_000),
        slots=4096,
        num_ranks=8,
        dim=512,
    )
    return replace(one, **changes)


def chosen(found: StepMemory, gigabytes: float, recipe: Recipe | None = None, **free: bool) -> Recipe:
    start = recipe or Recipe(precision="bf16", local_loss=True)
    fit = memory.choose(found, start, gigabytes * GB, **{"chunks": True, "rows": True, **free})
    assert fit.fits
    return fit.recipe


def test_everything_at_once_where_there_is_room() -> None:
    assert chosen(laion(), 160) == Recipe(precision="bf16", local_loss=True)


def test_then_the_loss_by_rows_then_chunks_then_checkpointing() -> None:
    found = laion()
    by_rows = chosen(found, 152)
    assert (by_rows.accumulation, by_rows.loss_rows, by_rows.grad_checkpointing) == (1, 1024, False)
    in_chunks = chosen(found, 78)
    assert (in_chunks.accumulation, in_chunks.loss_rows, in_chunks.grad_checkpointing) == (2, None, False)
    large = laion(plain=Activations(fixed=0, per_pair=2 * GB), checkpointed=Activations(fixed=0, per_pair=0.1 * GB))
    checkpointed = chosen(large, 38)
    assert checkpointed.grad_checkpointing
    assert checkpointed.accumulation == 16


@pytest.mark.parametrize("gigabytes", [8, 12, 16, 24, 40, 80, 141])
def test_less_memory_never_needs_less_work_and_the_choice_fits(gigabytes: float) -> None:
    found = laion()
    fit = memory.choose(found, Recipe(local_loss=True), gigabytes * GB, chunks=True, rows=True)
    smaller = memory.choose(found, Recipe(local_loss=True), gigabytes * GB * 0.9, chunks=True, rows=True)
    assert fit.num_bytes <= fit.budget
    assert smaller.order >= fit.order


def test_what_is_set_is_not_changed() -> None:
    fixed = Recipe(precision="bf16", local_loss=True, accumulation=2)
    fit = memory.choose(laion(), fixed, 40 * GB, chunks=False, rows=True)
    assert fit.recipe.accumulation == 2
    assert not fit.recipe.grad_checkpointing
    assert not fit.fits
    assert "training.accumulation=2" in str(fit)


def test_shares_without_a_divisor_are_split_too() -> None:
    recipe = chosen(laion(slots=4099, num_ranks=1), 60, Recipe(precision="bf16"))
    assert recipe.accumulation > 1
    assert -(-4099 // recipe.accumulation) * 35.4e6 < 60 * GB


def test_batch_norms_refuse_chunks(timm_clip: Clip, tiny_clip: Clip) -> None:
    reason = memory.refusal(timm_clip, Recipe())
    assert reason is not None
    assert "batch norms" in reason
    assert "training.accumulation" in reason
    frozen = Recipe(lock_image=True, lock_image_freeze_bn_stats=True)
    assert memory.refusal(timm_clip, frozen) is None
    assert memory.refusal(tiny_clip, Recipe()) is None


@pytest.mark.parametrize("gigabytes", [0.0005, 0.002, 0.01])
def test_losses_stay_within_the_tolerance_whatever_is_chosen(
    gigabytes: float, tiny_config: dict[str, Any], batch: Batch
) -> None:
    def losses(recipe: Recipe) -> list[float]:
        clip = build(name=None, config=tiny_config, pretrained=None, image_size=None, context_length=None, seed=0)
        train_step = TrainStep(clip, recipe, device=CPU)
        return [train_step.run(batch, lr=1e-3, step=step).loss.item() for step in range(5)]

    found = laion(
        weights=0, trained=0, slots=8, num_ranks=1, dim=32, image_bytes=0,
        plain=Activations(fixed=0, per_pair=600_000), checkpointed=Activations(fixed=0, per_pair=300_000),
    )  # fmt: skip
    chosen_recipe = memory.choose(found, Recipe(), gigabytes * GB, chunks=True, rows=True).recipe
    assert (chosen_recipe.accumulation > 1) == (gigabytes < 0.004)
    assert losses(chosen_recipe) == pytest.approx(losses(Recipe()), rel=1e-5)
