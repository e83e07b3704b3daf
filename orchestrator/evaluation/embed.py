"""Run the images of evaluation sets through models, and compute zero-shot and retrieval metrics.

An `Embedder` decides where that happens. `InProcess`, here, needs no Ray: the models are in this process, and several
ranks may share a set. `on_ray.OnRay` starts actors. Both see the same batches, so the results are the same: a batch is
`batch_size` samples in a row, across the borders of tars. Zero-shot hits are counted per class. Retrieval needs the
features, because each query is ranked against the whole gallery."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.clip.features import device_of, encode_images, encode_texts
from orchestrator.clip.model import Clip
from orchestrator.clip.zero_shot import OPENAI_IMAGENET_TEMPLATES, ClassCounts, class_weights, recall_at_k, topk_counts
from orchestrator.config import EvaluationConfig
from orchestrator.data.image_decode import ImageDecoder
from orchestrator.engine.console import StageProgress
from orchestrator.errors import UserError, mistake_in
from orchestrator.evaluation.image_reader import Rows, read_images
from orchestrator.evaluation.models import decoder_of
from orchestrator.evaluation.sets import EvaluationSet

logger = logging.getLogger(__name__)

Clips = Mapping[str, Clip]
Weights = Mapping[str, torch.Tensor]
"""Class embeddings by model, float32 [num_classes, dim]."""
Work = Callable[[torch.Tensor, Rows], Rows]
"""Gets the decodable images of a batch, uint8 [b, 3, size, size], and their columns."""
Make = Callable[[Clips], Work]
"""Prepares the work of a process with its models."""
Read = Callable[[EvaluationSet, ImageDecoder, int], Iterable[Rows]]
"""Yields the batches of a set that this process embeds, as columns of `image_reader`."""


class Embedder(Protocol):
    """Runs sets through models, wherever they are."""

    names: tuple[str, ...]
    settings: EvaluationConfig

    def classes(self, class_names: Sequence[str], templates: Sequence[str]) -> Weights:
        """Return the class embeddings of every model; the same classes are embedded once."""

    def embed(self, dataset: EvaluationSet, make: Make) -> Iterator[Rows]:
        """Yield one result per batch, in order: what the work of `make` returns, with `images` and `skipped` added.

        `images` is the number of decodable images, `skipped` the number of samples that cannot be used or decoded."""

    def compute(self, function: Callable[..., Any], *arrays: NDArray, heavy: bool = False) -> Any:
        """Return the result of a function of tensors, on a GPU if there is one. `heavy`: it takes minutes on a CPU."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work: this one's rank, their number, and the exchange of one value of each."""

    rank: int = 0
    num: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    def every(self, call: Callable[[], Any]) -> list[Any]:
        """Return what the call returns on every rank. If one raises a user's mistake, all of them do."""
        mine, error = None, None
        try:
            mine = call()
        except UserError as raised:
            # Ray's wrapper of an error in a task cannot be sent on
            error = mistake_in(raised) or raised
        found = self.gather((mine, error))
        mistake = next((error for _, error in found if error is not None), None)
        if mistake is not None:
            raise mistake
        return [value for value, _ in found]

    def spread(self, compute: Callable[[int], torch.Tensor], num: int) -> list[torch.Tensor]:
        """Return the tensors for 0, 1, ..., num - 1; each rank computes every n-th."""
        shares = self.every(lambda: {number: compute(number) for number in range(self.rank, num, self.num)})
        found = {number: value for share in shares for number, value in share.items()}
        return [found[number] for number in range(num)]


class InProcess:
    """Embeds with models that are in this process; every rank calls the same methods and gets the same results."""

    def __init__(
        self, clips: Clips, settings: EvaluationConfig, *, read: Read | None = None, ranks: Ranks | None = None
    ):
        self.clips, self.settings, self.names = clips, settings, tuple(clips)
        self.read, self.ranks = read or read_here, ranks or Ranks()
        self.weights: dict[Any, Weights] = {}

    def classes(self, class_names: Sequence[str], templates: Sequence[str]) -> Weights:
        """Return the class embeddings of every model; the ranks share the work."""
        key = tuple(class_names), tuple(templates)
        if key not in self.weights:
            self.weights[key] = embedded_classes(self.clips, *key, self.settings, self.ranks)
        return self.weights[key]

    def embed(self, dataset: EvaluationSet, make: Make) -> Iterator[Rows]:
        """Yield one result per batch, in order, the same on every rank."""
        decoder = decoder_of(*next(iter(self.clips.items())))
        work = make(self.clips)
        results = ((_place(batch), on_decodable(work, batch)) for batch in self.read(dataset, decoder, self._size))
        if self.ranks.num > 1:
            shares = self.ranks.every(lambda: list(results))
            results = (result for result in sorted((one for share in shares for one in share), key=lambda one: one[0]))
        for _, result in results:
            yield result

    def compute(self, function: Callable[..., Any], *arrays: NDArray, heavy: bool = False) -> Any:
        """Return the result of a function of tensors, on the device of the models."""
        device = device_of(next(iter(self.clips.values())))
        return function(*(torch.from_numpy(array).to(device) for array in arrays))

    @property
    def _size(self) -> int:
        return self.settings.batch_size


def read_here(dataset: EvaluationSet, decoder: ImageDecoder, batch_size: int) -> Iterator[Rows]:
    """Read and decode a set in this process."""
    parts = {"part": [part.index for part in dataset.source.parts()]}
    waiting: list[Rows] = []
    for rows in read_images(parts, dataset=dataset, decoder=decoder, batch_size=batch_size):
        waiting.append(rows)
        while sum(len(one["valid"]) for one in waiting) >= batch_size:
            joined = _joined(waiting)
            yield {name: column[:batch_size] for name, column in joined.items()}
            waiting = [{name: column[batch_size:] for name, column in joined.items()}]
    if waiting and len(waiting[-1]["valid"]):
        yield _joined(waiting)


def _joined(batches: list[Rows]) -> Rows:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _place(batch: Rows) -> tuple[int, int]:
    return int(batch["part"][0]), int(batch["row"][0])


def on_decodable(work: Work, batch: Rows) -> Rows:
    """Return the work's result for the decodable images of a batch, with their number and that of the others."""
    valid = batch["valid"].astype(bool)
    images = torch.from_numpy(np.ascontiguousarray(batch["image"][valid])).permute(0, 3, 1, 2)
    found = work(images, {name: column[valid] for name, column in batch.items() if name != "image"})
    return {**found, "images": int(valid.sum()), "skipped": int((~valid).sum())}


def embedded_classes(
    clips: Clips,
    class_names: Sequence[str],
    templates: Sequence[str],
    settings: EvaluationConfig,
    ranks: Ranks | None = None,
) -> dict[str, torch.Tensor]:
    """Return the class embeddings of every model, float32 [num_classes, dim] on the CPU."""
    options: dict[str, Any] = {"batch_size": settings.batch_size, "precision": settings.precision}
    if ranks is not None and ranks.num > 1:
        options["spread"] = ranks.spread
    return {name: class_weights(clip, class_names, templates, **options) for name, clip in clips.items()}


def measure(
    embedder: Embedder, sets: Mapping[str, EvaluationSet], progress: StageProgress | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluate every model on every set; return `{model: {set: {metric: value}}}`."""
    measured: dict[str, dict[str, Any]] = {name: {} for name in embedder.names}
    for of_set, numbers_of in (("zero_shot", _zero_shot), ("retrieval", _retrieval)):
        if of_set in sets:
            for name, numbers in numbers_of(embedder, sets[of_set], progress).items():
                logger.info("%s of %s: %s", of_set, name, numbers)
                measured[name][of_set] = numbers
    return measured


def _zero_shot(embedder: Embedder, dataset: EvaluationSet, progress: StageProgress | None) -> dict[str, dict[str, Any]]:
    templates = embedder.settings.zero_shot.templates or dataset.templates or OPENAI_IMAGENET_TEMPLATES
    make = partial(_ZeroShot, embedder.settings, embedder.classes(dataset.class_names, templates))
    counts: dict[str, list[ClassCounts]] = {name: [] for name in embedder.names}
    skipped = 0
    for row in embedder.embed(dataset, make):
        skipped += row["skipped"]
        for name, found in zip(row["name"], row["counts"], strict=True):
            counts[name].append(ClassCounts(*torch.from_numpy(np.asarray(found))))
        if progress is not None:
            progress.update(progress.done + row["images"])
    results = {}
    for name, found in counts.items():
        total = reduce(add, found)
        results[name] = {
            **_measured("zero_shot", total.summary),
            "num_classes": len(dataset.class_names),
            "num_images": int(total.num_images.sum()),
            "skipped": skipped,
        }
    return results


def _retrieval(embedder: Embedder, pairs: EvaluationSet, progress: StageProgress | None) -> dict[str, dict[str, Any]]:
    features: dict[str, list[tuple[NDArray, NDArray]]] = {name: [] for name in embedder.names}
    skipped = 0
    for row in embedder.embed(pairs, partial(_Retrieval, embedder.settings)):
        skipped += row["skipped"]
        for name, image, text in zip(row["name"], row["image_features"], row["text_features"], strict=True):
            features[name].append((np.asarray(image), np.asarray(text)))
        if progress is not None:
            progress.update(progress.done + row["images"])
    results = {}
    for name, chunks in features.items():
        images, texts = (np.concatenate(side) for side in zip(*chunks, strict=True))
        recalls = _measured("retrieval", partial(embedder.compute, recall_at_k, images, texts))
        results[name] = {**recalls, "num_pairs": len(images), "skipped": skipped}
    return results


def _measured(of_set: str, numbers: Callable[[], dict[str, float]]) -> dict[str, float]:
    # a set without an image that can be decoded, or a diverged model
    try:
        return numbers()
    except ValueError as error:
        raise UserError(f"evaluation.{of_set}: {error}") from error


class _ZeroShot:
    def __init__(self, settings: EvaluationConfig, weights: Weights, clips: Clips):
        self.clips, self.settings = clips, settings
        self.weights = {name: weights[name].to(device_of(clip)) for name, clip in clips.items()}

    def __call__(self, images: torch.Tensor, columns: Rows) -> Rows:
        labels = torch.from_numpy(columns["label"])
        counts = []
        for name, clip in self.clips.items():
            features = encode_images(clip, images, **options_of(self.settings)).to(device_of(clip))
            try:
                found = topk_counts(features, labels.to(features.device), self.weights[name])
            except ValueError as error:
                raise UserError(f"evaluation.zero_shot: {error}") from error
            counts.append(torch.stack([found.num_images, found.top1, found.top5]).cpu().numpy())
        return {"name": list(self.clips), "counts": counts}


def options_of(settings: EvaluationConfig) -> dict[str, Any]:
    """Return how the towers compute, as arguments of `clip.features`."""
    return {"batch_size": settings.batch_size, "precision": settings.precision}


class _Retrieval:
    def __init__(self, settings: EvaluationConfig, clips: Clips):
        self.clips, self.options = clips, options_of(settings)

    def __call__(self, images: torch.Tensor, columns: Rows) -> Rows:
        captions = list(columns["caption"])
        of_images = [encode_images(clip, images, **self.options).numpy() for clip in self.clips.values()]
        # a batch may have no decodable image
        of_texts = [
            encode_texts(clip, captions, **self.options).numpy() if captions else features
            for clip, features in zip(self.clips.values(), of_images, strict=True)
        ]
        return {"name": list(self.clips), "image_features": of_images, "text_features": of_texts}
