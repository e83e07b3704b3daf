"""Zero-shot classification: a class is the mean of its prompts' unit-norm features, normalised again (Radford et al.
2021, as open_clip's `build_zero_shot_classifier`); an image belongs to the class with the largest dot product."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES as PROMPT_FUNCTIONS

from orchestrator.clip.features import encode_texts
from orchestrator.clip.model import Clip
from orchestrator.clip.ranks import target_ranks

PLACEHOLDER = re.compile(r"\{c?\}")
OPENAI_IMAGENET_TEMPLATES = tuple(prompt("{c}") for prompt in PROMPT_FUNCTIONS)


def class_weights(
    clip: Clip,
    class_names: Sequence[str],
    templates: Sequence[str] = OPENAI_IMAGENET_TEMPLATES,
    *,
    batch_size: int,
) -> torch.Tensor:
    """Unit-norm float32 [num_classes, dim] on the CPU; `batch_size` counts prompts.

    A template holds `{c}` or `{}` where the class name goes. Errors: `ValueError` for no names, no templates, or a
    template without a place for the name."""
    if not class_names or not templates:
        raise ValueError(
            f"got {len(class_names)} class names and {len(templates)} templates: expected at least one each"
        )
    for template in templates:
        if not PLACEHOLDER.search(template):
            raise ValueError(f"template {template!r} has no place for the class name: write {{c}} there")
    classes_per_chunk = max(1, batch_size // len(templates))
    weights = []
    for start in range(0, len(class_names), classes_per_chunk):
        names = class_names[start : start + classes_per_chunk]
        prompts = [_fill(template, name) for name in names for template in templates]
        features = encode_texts(clip, prompts, batch_size=batch_size)
        weights.append(features.unflatten(0, (len(names), len(templates))).mean(dim=1))
    return torch.nn.functional.normalize(torch.cat(weights), dim=-1)


def _fill(template: str, name: str) -> str:
    # not str.format: a class name or template may hold other braces
    return PLACEHOLDER.sub(lambda _: name, template)


@dataclass(frozen=True)
class ClassCounts:
    """Per class: images seen and hits among the nearest one and five classes, int64 [num_classes]. Counts add up."""

    num_images: torch.Tensor
    top1: torch.Tensor
    top5: torch.Tensor

    def __add__(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(self.num_images + other.num_images, self.top1 + other.top1, self.top5 + other.top5)

    def summary(self) -> dict[str, float]:
        """`top1`, `top5` and `mean_per_class` (the mean of the classes' own top-1), in [0, 1].

        Classes without an image count in none of them. Errors: `ValueError` if there was no image at all."""
        total = self.num_images.sum().item()
        if total == 0:
            raise ValueError("the evaluation set has no image")
        present = self.num_images > 0
        per_class = self.top1[present].double() / self.num_images[present]
        return {
            "top1": self.top1.sum().item() / total,
            "top5": self.top5.sum().item() / total,
            "mean_per_class": per_class.mean().item(),
        }


def topk_counts(image_features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> ClassCounts:
    """Counts of one batch: features [b, dim], labels int64 [b], weights [num_classes, dim]; ties go to the class that
    comes first. Errors: `ValueError` for a label that no class has, or diverged features."""
    num_classes = len(weights)
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"got label {wrong[0].item()}, expected 0 to {num_classes - 1}: there are {num_classes} class names"
        )
    ranks = target_ranks(image_features, weights, labels)
    return ClassCounts(
        num_images=torch.bincount(labels, minlength=num_classes),
        top1=torch.bincount(labels[ranks < 1], minlength=num_classes),
        top5=torch.bincount(labels[ranks < 5], minlength=num_classes),
    )
