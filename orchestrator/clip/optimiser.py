"""AdamW as CLIP uses it: no weight decay on gains, biases and the logit scale (open_clip_train's rule)."""

from __future__ import annotations

import torch

FUSED_DEVICES = ("cpu", "cuda")


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: matrices only, and none of batch or layer norm, biases and the logit scale."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def adamw(
    model: torch.nn.Module, *, lr: float, weight_decay: float, beta1: float, beta2: float, eps: float
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in two groups, undecayed and decayed; move the model to its device first."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for name, parameter in named if not is_decayed(name, parameter)], "weight_decay": 0.0},
        {
            "params": [parameter for name, parameter in named if is_decayed(name, parameter)],
            "weight_decay": weight_decay,
        },
    ]
    fused = all(parameter.device.type in FUSED_DEVICES for _, parameter in named)
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=fused)
