"""The pair decides which patches are kept. Their number and the tokens that always stay equal those of open_clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from open_clip.transformer import PatchDropout

from orchestrator.clip.model import Clip, build
from orchestrator.clip.patch_dropout import KeyedPatchDropout, install
from orchestrator.clip.randomness import mix
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, TrainStep

CPU = torch.device("cpu")


def make_clip(config: dict[str, Any], seed: int = 0, **vision_cfg: Any) -> Clip:
    vision_cfg = {**config["vision_cfg"], **vision_cfg}
    config = {**config, "vision_cfg": vision_cfg}
    return build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=seed)


def slow_mix(*parts: int) -> int:
    """Return the published finaliser of SplitMix64, in Python integers."""
    mask, state = 2**64 - 1, 0
    for part in parts:
        state = (state ^ (part & mask)) + 0x9E3779B97F4A7C15 & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state - 2**64 if state >= 2**63 else state


def test_the_hash_is_splitmix64() -> None:
    keys = torch.tensor([0, 1, -5, 2**62, -(2**63)])
    expected = [[slow_mix(7, key, patch) for patch in range(4)] for key in keys.tolist()]
    assert mix(7, keys[:, None], torch.arange(4)).tolist() == expected


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("num_patches", [4, 49, 196])
def test_the_number_of_kept_patches_equals_open_clips_and_class_tokens_stay(share: float, num_patches: int) -> None:
    dropout = KeyedPatchDropout(share=share, num_patches=num_patches, num_prefix_tokens=1)
    tokens = torch.arange(3.0 * (num_patches + 1)).view(3, num_patches + 1, 1).expand(-1, -1, 5)
    dropout.kept = dropout.choose(0, torch.tensor([5, 6, 5]))
    left = dropout(tokens)
    assert left.shape == PatchDropout(share)(tokens).shape
    assert torch.equal(left[:, 0], tokens[:, 0])
    ordinals = left[:, :, 0] - tokens[:, :1, 0]
    assert all(len(set(row)) == len(row) for row in ordinals.tolist())
    assert torch.equal(ordinals[0], ordinals[2])
    assert torch.equal(dropout.eval()(tokens), tokens)


def test_the_kept_patches_of_a_pair_do_not_depend_on_its_batch() -> None:
    dropout = KeyedPatchDropout(share=0.5, num_patches=49, num_prefix_tokens=1)
    keys = torch.arange(1000)
    kept = dropout.choose(3, keys)
    assert torch.equal(dropout.choose(3, keys[137:141]), kept[137:141])
    assert not torch.equal(dropout.choose(4, keys), kept)
    # each patch is kept about equally often, within five standard deviations
    counts = torch.bincount(kept.flatten(), minlength=49)
    share = dropout.num_kept / 49
    assert (counts - 1000 * share).abs().max() < 5 * (1000 * share * (1 - share)) ** 0.5


def test_chunks_and_the_order_of_slots_do_not_change_a_step(tiny_config: dict[str, Any], batch: Batch) -> None:
    keys = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    keyed = replace(batch, keys=keys)
    shuffled = Batch(batch.images[order], batch.texts[order], batch.valid[order], keys[order])
    metrics, gradients = [], []
    for some, accumulation in ((keyed, 1), (shuffled, 1), (keyed, 4)):
        recipe = Recipe(patch_dropout=0.5, accumulation=accumulation)
        train_step = TrainStep(make_clip(tiny_config, image_size=64), recipe, device=CPU)
        bigger = replace(some, images=some.images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        metrics.append(train_step.run(bigger, lr=0.0, step=0))
        gradients.append({name: weight.grad for name, weight in train_step.model.named_parameters()})
    for other in (1, 2):
        torch.testing.assert_close(vars(metrics[other]), vars(metrics[0]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients[other], gradients[0], rtol=1e-4, atol=1e-6)


def test_patch_dropout_of_the_model_configuration_is_keyed_too(tiny_config: dict[str, Any], batch: Batch) -> None:
    clip = make_clip(tiny_config, patch_dropout=0.5)
    train_step = TrainStep(clip, Recipe(), device=CPU)
    assert train_step.patch_dropout is not None
    assert train_step.patch_dropout.num_kept == 2
    losses = [train_step.run(replace(batch, keys=torch.arange(8)), lr=0.0, step=step).loss.item() for step in (0, 1)]
    assert losses[0] == losses[1]
    assert isinstance(train_step.export().model.visual.patch_dropout, PatchDropout)


@pytest.mark.parametrize(("name", "num_patches"), [("test_vit", 4), ("eva02_tiny_patch14_224", 256)])
def test_timms_transformers_drop_patches(name: str, num_patches: int) -> None:
    size = 32 if name == "test_vit" else 224
    trunk: Any = timm.create_model(name, num_classes=0, img_size=size)
    full = trunk.eval()(torch.ones(2, 3, size, size))
    dropout = install(trunk, 0.5)
    assert dropout is not None
    assert dropout.num_patches == num_patches
    seen = []
    trunk.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output.shape[1]))
    dropout.kept = dropout.choose(0, torch.tensor([1, 2]))
    trunk.train()(torch.ones(2, 3, size, size))
    torch.testing.assert_close(trunk.eval()(torch.ones(2, 3, size, size)), full)
    assert seen == [num_patches // 2 + trunk.num_prefix_tokens, num_patches + trunk.num_prefix_tokens]


def test_a_tower_without_patches_is_refused(timm_clip: Clip) -> None:
    with pytest.raises(ValueError, match=r"patch dropout 0\.5 needs a vision transformer.*a ByobNet|ResNet"):
        TrainStep(timm_clip, Recipe(patch_dropout=0.5), device=CPU)
