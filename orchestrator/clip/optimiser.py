"""AdamW as CLIP uses it: no weight decay on gains, biases and the logit scale (open_clip_train's rule)."""

from __future__ import annotations

import torch

from orchestrator.clip.recipe import Recipe

FUSED_DEVICES = ("cpu", "cuda")


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: matrices only, and none of batch or layer norm, biases and the logit scale."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def adamw(model: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in groups: scalars, the other undecayed, the decayed; move the model to its
    device first. The learning rate is set before each step."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    # FSDP does not shard scalars, and a fused update takes one kind
    scalars = [weight for _, weight in named if weight.numel() == 1]
    undecayed = [weight for name, weight in named if weight.numel() > 1 and not is_decayed(name, weight)]
    decayed = [weight for name, weight in named if is_decayed(name, weight)]
    groups = [
        {"params": scalars, "weight_decay": 0.0},
        {"params": undecayed, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": recipe.weight_decay},
    ]
    fused = all(weight.device.type in FUSED_DEVICES for _, weight in named)
    return torch.optim.AdamW(groups, lr=0.0, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=fused)
