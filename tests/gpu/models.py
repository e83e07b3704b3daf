"""Models with random weights and made-up pairs, of real sizes on a GPU and tiny ones in a dry run."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.clip import model
from orchestrator.clip.model import Clip
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.train_step import Batch, TrainStep
from tests.gpu.lab import Lab

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
}
START_OF_TEXT, END_OF_TEXT = 49406, 49407


def built(lab: Lab, name: str) -> Clip:
    """Return an open_clip model, equal in every process; a tiny one in a dry run."""
    given: dict[str, Any] = {"name": None, "config": TINY} if lab.is_dry else {"name": name, "config": None}
    return model.build(**given, pretrained=None, image_size=None, context_length=None, seed=0)


def train_step(lab: Lab, name: str, device: torch.device | None = None, **recipe: Any) -> TrainStep:
    """Return the training step of a new model on the lab's device, or on another one."""
    return TrainStep(built(lab, name), Recipe(**recipe), device=device or lab.device)


def made_up(lab: Lab, clip: Clip, num_pairs: int, *, num_tokens: int = 77, seed: int = 0) -> Batch:
    """Return pairs in page-locked memory: noise as images, captions of which the longest has `num_tokens`."""
    draw = torch.Generator().manual_seed(seed)
    size, context = clip.image_size, clip.model_cfg["text_cfg"]["context_length"]
    # the layout of decoded images: channels last
    images = torch.randint(0, 256, (num_pairs, size, size, 3), dtype=torch.uint8, generator=draw)
    longest = min(num_tokens, context)
    lengths = torch.randint(min(8, longest), longest + 1, (num_pairs,), generator=draw)
    lengths[0] = longest
    texts = torch.randint(1, START_OF_TEXT, (num_pairs, context), generator=draw)
    places = torch.arange(context)
    texts[:, 0] = START_OF_TEXT
    texts = torch.where(places == lengths[:, None] - 1, END_OF_TEXT, texts)
    texts = torch.where(places >= lengths[:, None], 0, texts)
    valid = torch.ones(num_pairs, dtype=torch.bool)
    tensors = (images.permute(0, 3, 1, 2), texts, valid, torch.arange(num_pairs))
    return Batch(*(lab.pinned(tensor) for tensor in tensors))


def distance(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return |got - wanted| / |wanted| over all elements of tensors, computed in float64 on the CPU."""
    pairs = [(one.cpu().double(), other.cpu().double()) for one, other in zip(got, wanted, strict=True)]
    off = sum((one - other).square().sum().item() for one, other in pairs)
    return (off / sum(other.square().sum().item() for _, other in pairs)) ** 0.5


def weights_of(step: TrainStep) -> list[torch.Tensor]:
    """Return a copy of the trained weights, on the CPU."""
    return [weight.detach().to("cpu", copy=True) for weight in step.weights]


def gradients_of(step: TrainStep) -> list[torch.Tensor]:
    """Return a copy of the gradients of the last step, on the CPU."""
    return [weight.grad.to("cpu", copy=True) for weight in step.weights if weight.grad is not None]
