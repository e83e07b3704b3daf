"""Zero-shot metrics: accuracy of classification by class names, and recall of image-text retrieval.

A class is the mean of its prompts' unit-norm features, normalised again (Radford et al. 2021, as open_clip's
`build_zero_shot_classifier`); an image belongs to the class with the largest dot product. Recall@k is the share of
queries whose own partner is among the k nearest.

Both count how many gallery items are closer to a query than its target. Equal scores count if they come before the
target, so a model that gives all pairs the same score is right as often as chance. Scores are dot products in float64
rounded to float32: equal scores stay equal for every tile size. A GPU computes them in float32 first, and in float64
only where that does not decide which of two is larger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES as PROMPT_FUNCTIONS

from orchestrator.clip.features import encode_texts
from orchestrator.clip.model import Clip
from orchestrator.clip.precision import matmuls
from orchestrator.clip.prompts import check_templates, fill
from orchestrator.clip.recipe import Precision

TILE_ROWS = 2048
# if more of a tile's scores than this share are too close to call, all of them are computed in float64
MANY_CLOSE = 1 / 256
OPENAI_IMAGENET_TEMPLATES = tuple(prompt("{c}") for prompt in PROMPT_FUNCTIONS)


Compute = Callable[[int], torch.Tensor]
Spread = Callable[[Compute, int], Sequence[torch.Tensor]]
"""Returns the tensors of a function for 0, 1, ..., n - 1, in order."""


def in_turn(compute: Compute, num: int) -> list[torch.Tensor]:
    """Call the function for one number after another."""
    return [compute(number) for number in range(num)]


def class_weights(
    clip: Clip,
    class_names: Sequence[str],
    templates: Sequence[str] = OPENAI_IMAGENET_TEMPLATES,
    *,
    batch_size: int,
    precision: Precision = "fp32",
    spread: Spread = in_turn,
) -> torch.Tensor:
    """Return unit-norm float32 [num_classes, dim] on the CPU; `batch_size` counts prompts.

    `spread` may share the batches of prompts between processes; they are the same for every number of processes.
    A template has `{c}` or `{}` where the class name goes. Errors: `ValueError` for no names, no templates, or a
    template without that placeholder."""
    if not class_names or not templates:
        raise ValueError(
            f"got {len(class_names)} class names and {len(templates)} templates: expected at least one each"
        )
    check_templates(templates)
    per_chunk = max(1, batch_size // len(templates))

    def weights(number: int) -> torch.Tensor:
        names = class_names[number * per_chunk : (number + 1) * per_chunk]
        prompts = [fill(template, name) for name in names for template in templates]
        features = encode_texts(clip, prompts, batch_size=batch_size, precision=precision)
        return features.unflatten(0, (len(names), len(templates))).mean(dim=1)

    chunks = spread(weights, -(-len(class_names) // per_chunk))
    return torch.nn.functional.normalize(torch.cat(list(chunks)), dim=-1)


@dataclass(frozen=True)
class ClassCounts:
    """Per class: images seen, and hits among the nearest one and five classes, int64 [num_classes].

    Counts of batches add up with `+`."""

    num_images: torch.Tensor
    top1: torch.Tensor
    top5: torch.Tensor

    def __add__(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(self.num_images + other.num_images, self.top1 + other.top1, self.top5 + other.top5)

    def summary(self) -> dict[str, float]:
        """Return `top1`, `top5` and `mean_per_class` (the mean of each class's top-1), in [0, 1].

        Classes without an image are left out. Errors: `ValueError` if there was no image at all."""
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
    """Return the counts of one batch: features [b, dim], labels int64 [b], weights [num_classes, dim].

    Ties go to the class that comes first. Errors: `ValueError` for a label outside the classes, or NaN or infinite
    features."""
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


def recall_at_k(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    ks: Sequence[int] = (1, 5, 10),
    *,
    tile_rows: int = TILE_ROWS,
) -> dict[str, float]:
    """Return `image_to_text_recall_at_K` and `text_to_image_recall_at_K`, in [0, 1]; row i of both [n, dim] is pair i.

    Equal scores rank in row order. Errors: `ValueError` for unequal or no rows, or NaN or infinite features."""
    if len(image_features) != len(text_features) or len(image_features) == 0:
        raise ValueError(
            f"got {len(image_features)} images and {len(text_features)} texts: expected pairs, at least one"
        )
    own = torch.arange(len(image_features), device=image_features.device)
    ways = {
        "image_to_text": target_ranks(image_features, text_features, own, tile_rows=tile_rows),
        "text_to_image": target_ranks(text_features, image_features, own, tile_rows=tile_rows),
    }
    return {f"{way}_recall_at_{k}": (ranks < k).double().mean().item() for way, ranks in ways.items() for k in ks}


def target_ranks(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    targets: torch.Tensor,
    *,
    tile_rows: int = TILE_ROWS,
    float32_first: bool | None = None,
) -> torch.Tensor:
    """Return the rank of each query's target in the gallery, int64 [n]; 0 is best.

    queries [n, dim], gallery [m, dim], float32 of norm 1 at most; targets int64 [n] (rows of the gallery). Memory:
    `tile_rows` squared scores at a time. `float32_first`: see above; None: on a GPU. Errors: `ValueError` for NaN or
    infinite features."""
    float32_first = queries.is_cuda if float32_first is None else float32_first
    for features in (queries, gallery):
        if not torch.isfinite(features).all():
            raise ValueError("features hold NaN or infinite values: the model has diverged")
    ranks = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for rows, wanted, out in zip(
        queries.split(tile_rows), targets.split(tile_rows), ranks.split(tile_rows), strict=True
    ):
        own = _products(rows, gallery[wanted])[:, None]
        for start in range(0, len(gallery), tile_rows):
            tile = gallery[start : start + tile_rows]
            scores = _scores_beside(own, rows, tile) if float32_first else _scores(rows, tile)
            earlier = torch.arange(start, start + len(tile), device=tile.device) < wanted[:, None]
            out += ((scores > own) | (scores == own) & earlier).sum(dim=1)
    return ranks


def _products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.double() * right.double()).sum(dim=1).float()


def _scores(rows: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
    return (rows.double() @ tile.double().T).float()


def _scores_beside(own: torch.Tensor, rows: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
    # scores that compare with `own` [n, 1] as those in float64 do
    with matmuls("highest"):
        scores = rows @ tile.T
    margin = rows.shape[1] * torch.finfo(torch.float32).eps
    is_close = (scores - own).abs() <= margin
    if is_close.count_nonzero() > MANY_CLOSE * is_close.numel():
        return _scores(rows, tile)
    row, place = is_close.nonzero(as_tuple=True)
    scores[row, place] = _products(rows[row], tile[place])
    return scores
