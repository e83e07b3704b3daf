"""Weight decay by parameter, and the fused update compared with the equation of AdamW."""

from __future__ import annotations

import torch

from orchestrator.clip.model import Clip
from orchestrator.clip.optimiser import adamw
from orchestrator.clip.recipe import Recipe


def test_gains_biases_and_the_logit_scale_do_not_decay(timm_clip: Clip) -> None:
    optimiser = adamw(timm_clip.model, Recipe())
    scalars, gains, decayed = optimiser.param_groups
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.0, 0.0, 0.2]
    names = {id(parameter): name for name, parameter in timm_clip.model.named_parameters()}
    kept = {names[id(parameter)] for parameter in scalars["params"] + gains["params"]}
    rest = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"logit_scale", "ln_final.weight", "ln_final.bias", "visual.trunk.bn1.weight"} <= kept
    assert {"token_embedding.weight", "text_projection", "positional_embedding", "visual.trunk.conv1.0.weight"} <= rest
    assert not kept & rest
    assert len(kept | rest) == len(names)


def test_one_step_equals_adamws_equation(tiny_clip: Clip) -> None:
    weight, gain = tiny_clip.model.text_projection, tiny_clip.model.ln_final.weight
    before_weight, before_gain = weight.detach().clone(), gain.detach().clone()
    optimiser = adamw(tiny_clip.model, Recipe())
    weight.grad, gain.grad = torch.full_like(weight, 0.5), torch.full_like(gain, -0.5)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    optimiser.step()
    # the first step of Adam has the size lr for any gradient; decay is decoupled: w -> w * (1 - lr * wd)
    torch.testing.assert_close(weight.detach(), before_weight * (1 - 0.1 * 0.2) - 0.1, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gain.detach(), before_gain + 0.1, rtol=1e-5, atol=1e-5)


def test_frozen_parameters_are_not_optimised(tiny_clip: Clip) -> None:
    tiny_clip.model.token_embedding.requires_grad_(False)
    optimiser = adamw(tiny_clip.model, Recipe())
    frozen = tiny_clip.model.token_embedding.weight
    assert all(parameter is not frozen for group in optimiser.param_groups for parameter in group["params"])
