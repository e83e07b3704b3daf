"""Retrieval tasks as defined by clip_benchmark: an image has several captions, the lines of its `txt` member.

`image_retrieval_recall@K`: share of captions that have their image among the K nearest images;
`text_retrieval_recall@K`: share of images with at least one of their captions among the K nearest captions;
`mean_recall@1`: mean of both at K = 1, DataComp's main metric."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from orchestrator.clip.features import encode_images, encode_texts
from orchestrator.clip.zero_shot import target_ranks
from orchestrator.engine.console import StageProgress
from orchestrator.errors import UserError
from orchestrator.evaluation.embed import Clips, Embedder, options_of
from orchestrator.evaluation.image_reader import Rows
from orchestrator.evaluation.tasks import Task

RECALL_AT = (1, 5, 10)


def retrieval(embedder: Embedder, task: Task, progress: StageProgress | None) -> dict[str, dict[str, Any]]:
    """Return, by model, `metrics`, `num_images` and `skipped`.

    Errors: `UserError` for a set without images or captions, or a diverged model."""
    batches: dict[str, list[Rows]] = {name: [] for name in embedder.names}
    skipped = 0
    for row in embedder.embed(task.test, partial(_Retrieve, options_of(embedder.settings))):
        skipped += row["skipped"]
        for name, found in batches.items():
            found.append(row[name])
        if progress is not None:
            progress.update(progress.done + row["images"], progress.note)
    results: dict[str, dict[str, Any]] = {}
    for name, found in batches.items():
        images, texts, counts = (
            np.concatenate([batch[key] for batch in found]) for key in ("images", "texts", "counts")
        )
        owners = np.repeat(np.arange(len(images)), counts)
        try:
            metrics = embedder.compute(recalls, images, texts, owners)
        except ValueError as error:
            raise UserError(f"{task.config.name}: {error}") from error
        results[name] = {"metrics": metrics, "num_images": len(images), "skipped": skipped}
    return results


def recalls(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor) -> dict[str, float]:
    """Return all recalls of unit-norm `images`, float [n, dim], and `texts`, float [m, dim].

    Text i describes image `owners[i]`, int64 [m]. Equal scores rank in row order.
    Errors: `ValueError` if there are no images or texts, or features are not finite."""
    if not len(images) or not len(texts):
        raise ValueError(f"got {len(images)} images and {len(texts)} captions: expected at least one each")
    of_texts = target_ranks(texts, images, owners)
    of_own = target_ranks(images[owners], texts, torch.arange(len(texts), device=texts.device))
    # an image without a caption is never found
    of_images = owners.new_full((len(images),), torch.iinfo(torch.int64).max).scatter_reduce(0, owners, of_own, "amin")
    ways = {"image": of_texts, "text": of_images}
    found = {
        f"{way}_retrieval_recall@{k}": (ranks < k).double().mean().item()
        for way, ranks in ways.items()
        for k in RECALL_AT
    }
    return {**found, "mean_recall@1": (found["image_retrieval_recall@1"] + found["text_retrieval_recall@1"]) / 2}


class _Retrieve:
    def __init__(self, options: dict[str, Any], clips: Clips):
        self.clips, self.options = clips, options

    def __call__(self, images: torch.Tensor, columns: Rows) -> Rows:
        lines = [[line for line in caption.splitlines() if line.strip()] for caption in columns["caption"]]
        captions, counts = [line for own in lines for line in own], np.array([len(own) for own in lines], np.int64)
        found: Rows = {}
        for name, clip in self.clips.items():
            of_images = encode_images(clip, images, **self.options).numpy()
            # a batch may have no decodable image
            of_texts = encode_texts(clip, captions, **self.options).numpy() if captions else of_images[:0]
            found[name] = {"images": of_images, "texts": of_texts, "counts": counts}
        return found
