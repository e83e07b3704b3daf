"""Locked towers (LiT, Zhai et al. 2022), with open_clip's functions: a locked tower has no gradient and no decay.

Its batch norms still update their running averages unless `lock_image_freeze_bn_stats` is set, and its dropout stays
active. open_clip freezes batch norms by replacing the modules, which loses the activation inside timm's
`BatchNormAct2d`. Here they stay in evaluation mode instead."""

from __future__ import annotations

from open_clip.hf_model import HFTextEncoder
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.clip.model import Model
from orchestrator.clip.recipe import Recipe


def frozen_batch_norms(model: Model, recipe: Recipe) -> list[nn.Module]:
    """Return the batch norms that stay in evaluation mode: those of a locked image tower without a gradient."""
    if not recipe.lock_image_freeze_bn_stats:
        return []
    norms = (module for module in model.visual.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if not any(weight.requires_grad for weight in norm.parameters())]


def uses_batch_statistics(model: Model, recipe: Recipe) -> bool:
    """Whether a result of training depends on which pairs are computed together: batch norms that are not frozen."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    freezes = recipe.lock_image and recipe.lock_image_freeze_bn_stats and not recipe.lock_image_unlocked_groups
    return bool(norms) and not freezes


def lock(model: Model, recipe: Recipe) -> None:
    """Lock the towers that the recipe names; call it before a wrapper or an optimiser sees the parameters.

    Errors: `ValueError` if nothing would be left to train, or the tower cannot be locked in parts."""
    in_parts = recipe.lock_image_unlocked_groups or recipe.lock_text_unlocked_layers
    if recipe.lock_image and recipe.lock_text and not in_parts:
        raise ValueError("both towers are locked: set lock_image or lock_text to false, or unlock some of the layers")
    if recipe.lock_image:
        _lock_image(model, recipe)
    if recipe.lock_text:
        is_hugging_face = isinstance(getattr(model, "text", None), HFTextEncoder)
        model.lock_text_tower(
            unlocked_layers=recipe.lock_text_unlocked_layers,
            freeze_layer_norm=recipe.lock_text_freeze_layer_norm if is_hugging_face else True,
        )


def _lock_image(model: Model, recipe: Recipe) -> None:
    try:
        model.lock_image_tower(unlocked_groups=recipe.lock_image_unlocked_groups)
    except AssertionError as error:
        raise ValueError(f"lock_image_unlocked_groups={recipe.lock_image_unlocked_groups}: {error}") from error
