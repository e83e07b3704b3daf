"""Run images through the models: Ray tasks read and decode, actors embed.

Each actor has all models, on a GPU if the cluster has any. Actors count zero-shot hits per class. For retrieval they
return the features, because each query is ranked against the whole gallery."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from json import JSONDecodeError
from operator import add
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from orchestrator.clip import model, preprocessing
from orchestrator.clip.features import encode_images, encode_texts
from orchestrator.clip.model import Clip
from orchestrator.clip.zero_shot import OPENAI_IMAGENET_TEMPLATES, ClassCounts, class_weights, recall_at_k, topk_counts
from orchestrator.config import EvaluationConfig
from orchestrator.config.section import MAX_IMAGE_PIXELS
from orchestrator.data.image_decode import ImageDecoder, Interpolation
from orchestrator.engine import ray_cluster
from orchestrator.engine.console import StageProgress
from orchestrator.errors import UserError
from orchestrator.evaluation.image_reader import Rows, read_images
from orchestrator.evaluation.sets import EvaluationSet
from orchestrator.storage import files

logger = logging.getLogger(__name__)

# a training worker evaluates while its own reading tasks hold CPUs
READ_CPUS = 0.25


@dataclass(frozen=True, kw_only=True)
class Models:
    """Models by name: URIs of model folders or open_clip references. All models take the same image input."""

    references: Mapping[str, str]
    pretrained: str | None = None

    def image_size(self) -> int:
        """Return the side of the input images in pixels, without loading weights."""
        return model.side(self._preprocess_cfg()["size"])

    def decoder(self) -> ImageDecoder:
        """Return the image decoder, without loading weights. Errors: `UserError` for an unsupported preprocessing."""
        return _decoder(next(iter(self.references.values())), self._preprocess_cfg())

    def _preprocess_cfg(self) -> dict[str, Any]:
        reference = next(iter(self.references.values()))
        try:
            folder = _folder(reference)
            if folder is None:
                return preprocessing.preprocess_cfg(reference, pretrained=self.pretrained)
            config = files.read_json(files.join(folder, model.CONFIG_FILE))
            return preprocessing.of_saved(reference, config if isinstance(config, dict) else {})
        except (JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"checkpoint: {reference}/{model.CONFIG_FILE} is not JSON: {error}") from error
        except ValueError as error:
            raise UserError(f"checkpoint: {error}") from error

    def load(self) -> dict[str, Clip]:
        """Load the models, onto the GPU if this process has one."""
        return {name: self._load(reference) for name, reference in self.references.items()}

    def _load(self, reference: str) -> Clip:
        try:
            folder = _folder(reference)
            if folder is None:
                return _placed(model.load(reference, pretrained=self.pretrained))
            with tempfile.TemporaryDirectory() as here:
                files.copy(folder, here)
                try:
                    return _placed(model.load(here))
                except ValueError as error:
                    # the user knows the folder, not its copy
                    raise ValueError(str(error).replace(here, folder)) from error
        except ValueError as error:
            raise UserError(f"checkpoint: {error}") from error


@dataclass(frozen=True)
class LoadedModels:
    """Models already in this process. It embeds by itself: no actor starts and no weights are sent."""

    references: Mapping[str, Clip]

    def decoder(self) -> ImageDecoder:
        """Return the image decoder. Errors: `UserError` for an unsupported preprocessing."""
        name, clip = next(iter(self.references.items()))
        return _decoder(name, clip.preprocess_cfg)

    def load(self) -> Mapping[str, Clip]:
        """Return the models."""
        return self.references


def _folder(reference: str) -> str | None:
    # with or without open_clip's scheme for local folders; None if it is not a saved model folder
    folder = reference.removeprefix(model.LOCAL_SCHEME)
    return folder if files.exists(files.join(folder, model.CONFIG_FILE)) else None


def _decoder(name: str, preprocess_cfg: Mapping[str, Any]) -> ImageDecoder:
    try:
        taken = preprocessing.image_input(name, preprocess_cfg["size"], preprocess_cfg["resize_mode"])
    except ValueError as error:
        raise UserError(f"evaluation: {error}") from error
    # open_clip's third value, "random", is for training; open_clip evaluates such a model with bicubic
    interpolation: Interpolation = "bilinear" if preprocess_cfg["interpolation"] == "bilinear" else "bicubic"
    return ImageDecoder(
        size=taken.size,
        crop_fraction=taken.crop_fraction,
        resize_mode=taken.resize_mode,
        max_pixels=MAX_IMAGE_PIXELS,
        interpolation=interpolation,
    )


def _placed(clip: Clip) -> Clip:
    clip.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return clip


def measure(
    models: Models | LoadedModels,
    sets: Mapping[str, EvaluationSet],
    settings: EvaluationConfig,
    progress: StageProgress | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate every model on every set; return `{model: {set: {metric: value}}}`."""
    measured: dict[str, dict[str, Any]] = {name: {} for name in models.references}
    for of_set, numbers_of in (("zero_shot", _zero_shot), ("retrieval", _retrieval)):
        if of_set in sets:
            for name, numbers in numbers_of(models, sets[of_set], settings, progress).items():
                logger.info("%s of %s: %s", of_set, name, numbers)
                measured[name][of_set] = numbers
    return measured


def _zero_shot(
    models: Models | LoadedModels,
    dataset: EvaluationSet,
    settings: EvaluationConfig,
    progress: StageProgress | None,
) -> dict[str, dict[str, Any]]:
    templates = settings.zero_shot.templates or dataset.templates or OPENAI_IMAGENET_TEMPLATES
    actor = partial(_ZeroShot, models, dataset.class_names, templates, settings.batch_size)
    counts: dict[str, list[ClassCounts]] = {name: [] for name in models.references}
    skipped = 0
    for row in embed(models, dataset, settings, actor):
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


def _retrieval(
    models: Models | LoadedModels,
    pairs: EvaluationSet,
    settings: EvaluationConfig,
    progress: StageProgress | None,
) -> dict[str, dict[str, Any]]:
    actor = partial(_Retrieval, models, settings.batch_size)
    features: dict[str, list[tuple[NDArray, NDArray]]] = {name: [] for name in models.references}
    skipped = 0
    for row in embed(models, pairs, settings, actor):
        skipped += row["skipped"]
        for name, image, text in zip(row["name"], row["image_features"], row["text_features"], strict=True):
            features[name].append((np.asarray(image), np.asarray(text)))
        if progress is not None:
            progress.update(progress.done + row["images"])
    results = {}
    for name, chunks in features.items():
        images, texts = (torch.from_numpy(np.concatenate(side)) for side in zip(*chunks, strict=True))
        recalls = _measured("retrieval", partial(recall_at_k, images, texts))
        results[name] = {**recalls, "num_pairs": len(images), "skipped": skipped}
    return results


def _measured(of_set: str, numbers: Callable[[], dict[str, float]]) -> dict[str, float]:
    # a set without an image that can be decoded, or a diverged model
    try:
        return numbers()
    except ValueError as error:
        raise UserError(f"evaluation.{of_set}: {error}") from error


def embed(
    models: Models | LoadedModels,
    dataset: EvaluationSet,
    settings: EvaluationConfig,
    make: Callable[[], Any],
) -> Iterator[Rows]:
    """Yield one result per batch: what the callable from `make()` returns for it, with `images` and `skipped` added.

    `make()` is called once per actor. Its callable gets the decodable images of a batch (uint8 [b, 3, size, size]) and
    their columns. `images` is their number, `skipped` the number of samples that cannot be used or decoded."""
    read = partial(read_images, dataset=dataset, decoder=models.decoder(), batch_size=settings.batch_size)
    rows = [{"part": part.index} for part in dataset.source.parts()]
    is_here = isinstance(models, LoadedModels)
    decoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        read, batch_size=1, num_cpus=READ_CPUS if is_here else 1
    )
    # a linear probe splits its rows by position
    decoded.context.execution_options.preserve_order = True
    if is_here:
        actor = _Actor(make)
        for batch in decoded.iter_batches(batch_size=settings.batch_size, batch_format="numpy"):
            yield actor(batch)["result"][0]
        return
    num_gpus = ray_cluster.num_gpus()
    embedded = decoded.map_batches(
        _Actor,
        fn_constructor_args=(make,),
        batch_size=settings.batch_size,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(num_gpus, len(rows)))),
        num_gpus=1 if num_gpus else 0,
    )
    for row in embedded.iter_rows():
        yield row["result"]


class _Actor:
    """Passes the decodable images of each batch to the models and counts the others."""

    def __init__(self, make: Callable[[], Any]):
        self.error: UserError | None = None
        try:
            self.embed = make()
        except UserError as error:
            # Ray reports an error of a constructor as the death of the actor, without its cause
            self.error = error

    def __call__(self, batch: Rows) -> Rows:
        if self.error is not None:
            raise self.error
        valid = batch["valid"].astype(bool)
        images = torch.from_numpy(np.ascontiguousarray(batch["image"][valid])).permute(0, 3, 1, 2)
        found = self.embed(images, {name: column[valid] for name, column in batch.items() if name != "image"})
        result = {**found, "images": int(valid.sum()), "skipped": int((~valid).sum())}
        return {"result": np.array([result], object)}


class _ZeroShot:
    def __init__(
        self, models: Models | LoadedModels, class_names: tuple[str, ...], templates: tuple[str, ...], batch_size: int
    ):
        self.clips, self.batch_size = models.load(), batch_size
        self.weights = {
            name: class_weights(clip, class_names, templates, batch_size=batch_size)
            for name, clip in self.clips.items()
        }

    def __call__(self, images: torch.Tensor, columns: Rows) -> Rows:
        labels = torch.from_numpy(columns["label"])
        counts = []
        for name, clip in self.clips.items():
            features = encode_images(clip, images, batch_size=self.batch_size)
            try:
                found = topk_counts(features, labels, self.weights[name])
            except ValueError as error:
                raise UserError(f"evaluation.zero_shot: {error}") from error
            counts.append(torch.stack([found.num_images, found.top1, found.top5]).numpy())
        return {"name": list(self.clips), "counts": counts}


class _Retrieval:
    def __init__(self, models: Models | LoadedModels, batch_size: int):
        self.clips, self.batch_size = models.load(), batch_size

    def __call__(self, images: torch.Tensor, columns: Rows) -> Rows:
        captions = list(columns["caption"])
        of_images = [encode_images(clip, images, batch_size=self.batch_size).numpy() for clip in self.clips.values()]
        # a batch may have no decodable image
        of_texts = [
            encode_texts(clip, captions, batch_size=self.batch_size).numpy() if captions else features
            for clip, features in zip(self.clips.values(), of_images, strict=True)
        ]
        return {"name": list(self.clips), "image_features": of_images, "text_features": of_texts}
