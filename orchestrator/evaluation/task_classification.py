"""Classification tasks: actors predict, metrics are computed from all predictions. Also the linear probe."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from orchestrator.clip.features import device_of, encode_images
from orchestrator.clip.linear_probe import fit_best
from orchestrator.clip.zero_shot import OPENAI_IMAGENET_TEMPLATES
from orchestrator.engine.console import StageProgress
from orchestrator.errors import UserError
from orchestrator.evaluation.embed import Clips, Embedder, Weights, options_of
from orchestrator.evaluation.image_reader import Rows
from orchestrator.evaluation.sets import EvaluationSet
from orchestrator.evaluation.task_metrics import Predictions, classification_metrics
from orchestrator.evaluation.tasks import Task

PROBE_SEED = 0
Numbers = dict[str, Any]


def classification(embedder: Embedder, task: Task, progress: StageProgress | None) -> dict[str, Numbers]:
    """Return, by model, `metrics`, `num_images` and `skipped`; metrics of the linear probe are `linear_probe_...`.

    Errors: `UserError` for a set without images, a missing group, a label without a class, or a diverged model."""
    num_classes, metric = len(task.test.class_names), task.config.metric
    columns, skipped = _predictions(embedder, task, task.test, progress, keep_features=task.train is not None)
    found: dict[str, Numbers] = {}
    for name, one in columns.items():
        rows = Predictions(**{key: value for key, value in one.items() if key != "features"})
        try:
            metrics = classification_metrics(rows, num_classes=num_classes, metric=metric)
        except ValueError as error:
            raise UserError(f"{task.config.name}: {error}") from error
        found[name] = {"metrics": metrics, "num_images": len(rows.labels), "skipped": skipped}
    if task.train is not None:
        trained, _ = _predictions(embedder, task, task.train, progress, keep_features=True)
        for name, one in columns.items():
            found[name]["metrics"] |= _probed(embedder, trained[name], one, num_classes)
    return found


def _predictions(
    embedder: Embedder,
    task: Task,
    dataset: EvaluationSet,
    progress: StageProgress | None,
    *,
    keep_features: bool,
) -> tuple[dict[str, Rows], int]:
    # by model: the columns of `Predictions`, and `features` if requested
    templates = dataset.templates or OPENAI_IMAGENET_TEMPLATES
    weights = embedder.classes(dataset.class_names, templates)
    make = partial(_Classify, options_of(embedder.settings), weights, task.config.name, keep_features)
    batches: dict[str, list[Rows]] = {name: [] for name in embedder.names}
    skipped = 0
    for row in embedder.embed(dataset, make):
        skipped += row["skipped"]
        for name in batches:
            batches[name].append(row[name])
        if progress is not None:
            progress.update(progress.done + row["images"], progress.note)
    return {name: _joined(found) for name, found in batches.items()}, skipped


def _joined(batches: list[Rows]) -> Rows:
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


class _Classify:
    def __init__(self, options: dict[str, Any], weights: Weights, task: str, keep_features: bool, clips: Clips):
        self.options, self.task, self.clips, self.keep_features = options, task, clips, keep_features
        self.weights = {name: weights[name].to(device_of(clip)) for name, clip in clips.items()}

    def __call__(self, images: torch.Tensor, columns: Rows) -> Rows:
        labels = torch.from_numpy(columns["label"])
        found: Rows = {}
        for name, clip in self.clips.items():
            features = encode_images(clip, images, **self.options)
            weights = self.weights[name]
            scores = (features.to(weights.device).double() @ weights.double().T).float()
            try:
                predicted, top5 = (column.cpu() for column in nearest(scores, labels.to(scores.device)))
            except ValueError as error:
                raise UserError(f"{self.task}: {error}") from error
            found[name] = {
                "labels": columns["label"],
                "predicted": predicted.numpy(),
                "top5": top5.numpy(),
                "groups": columns["group"],
            }
            if self.keep_features:
                found[name]["features"] = features.numpy()
        return found


def nearest(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best class, int64 [n], and whether the label is among the best five, bool [n].

    `scores` is [n, num_classes]; of equal scores the lower class index wins.
    Errors: `ValueError` for scores that are not finite, or a label that is not a class."""
    num_classes = scores.shape[1]
    if (labels >= num_classes).any():
        raise ValueError(f"got label {labels.max()}, expected 0 to {num_classes - 1}, one per class name")
    if not torch.isfinite(scores).all():
        raise ValueError("features contain NaN or infinite values: the model has diverged")
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :5]
    return order[:, 0], (order == labels[:, None]).any(dim=1)


def _probed(embedder: Embedder, train: Rows, test: Rows, num_classes: int) -> dict[str, float]:
    arrays = (train["features"], train["labels"], test["features"], test["labels"])
    predicted, top5 = embedder.compute(partial(_probe, num_classes), *arrays, heavy=True)
    rows = Predictions(labels=test["labels"], predicted=predicted, top5=top5, groups=test["groups"])
    metrics = classification_metrics(rows, num_classes=num_classes, metric="acc1")
    return {f"linear_probe_{name}": value for name, value in metrics.items()}


def _probe(
    num_classes: int, features: torch.Tensor, labels: torch.Tensor, of_test: torch.Tensor, test_labels: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    probe = fit_best(features, labels, num_classes=num_classes, seed=PROBE_SEED)
    predicted, top5 = nearest(probe.scores(of_test), test_labels)
    return predicted.cpu().numpy(), top5.cpu().numpy()
