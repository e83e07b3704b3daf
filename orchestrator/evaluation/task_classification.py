"""Classification tasks: actors predict, metrics are computed from all predictions. Also the linear probe."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import ray
import torch

from orchestrator.clip.features import encode_images
from orchestrator.clip.linear_probe import fit_best
from orchestrator.clip.zero_shot import OPENAI_IMAGENET_TEMPLATES, class_weights
from orchestrator.config import EvaluationConfig
from orchestrator.engine import ray_cluster
from orchestrator.engine.console import StageProgress
from orchestrator.errors import UserError
from orchestrator.evaluation.embed import LoadedModels, Models, embed
from orchestrator.evaluation.image_reader import Rows
from orchestrator.evaluation.sets import EvaluationSet
from orchestrator.evaluation.task_metrics import Predictions, classification_metrics
from orchestrator.evaluation.tasks import Task

PROBE_SEED = 0
Numbers = dict[str, Any]


def classification(
    models: Models | LoadedModels, task: Task, settings: EvaluationConfig, progress: StageProgress | None
) -> dict[str, Numbers]:
    """Return, by model, `metrics`, `num_images` and `skipped`; metrics of the linear probe are `linear_probe_...`.

    Errors: `UserError` for a set without images, a missing group, a label without a class, or a diverged model."""
    num_classes, metric = len(task.test.class_names), task.config.metric
    columns, skipped = _predictions(models, task, task.test, settings, progress, keep_features=task.train is not None)
    found: dict[str, Numbers] = {}
    for name, one in columns.items():
        rows = Predictions(**{key: value for key, value in one.items() if key != "features"})
        try:
            metrics = classification_metrics(rows, num_classes=num_classes, metric=metric)
        except ValueError as error:
            raise UserError(f"{task.config.name}: {error}") from error
        found[name] = {"metrics": metrics, "num_images": len(rows.labels), "skipped": skipped}
    if task.train is not None:
        trained, _ = _predictions(models, task, task.train, settings, progress, keep_features=True)
        for name, one in columns.items():
            found[name]["metrics"] |= _probed(trained[name], one, num_classes)
    return found


def _predictions(
    models: Models | LoadedModels,
    task: Task,
    dataset: EvaluationSet,
    settings: EvaluationConfig,
    progress: StageProgress | None,
    *,
    keep_features: bool,
) -> tuple[dict[str, Rows], int]:
    # by model: the columns of `Predictions`, and `features` if requested
    templates = dataset.templates or OPENAI_IMAGENET_TEMPLATES
    actor = partial(
        _Classify, models, dataset.class_names, templates, settings.batch_size, task.config.name, keep_features
    )
    batches: dict[str, list[Rows]] = {name: [] for name in models.references}
    skipped = 0
    for row in embed(models, dataset, settings, actor):
        skipped += row["skipped"]
        for name in batches:
            batches[name].append(row[name])
        if progress is not None:
            progress.update(progress.done + row["images"], progress.note)
    return {name: _joined(found) for name, found in batches.items()}, skipped


def _joined(batches: list[Rows]) -> Rows:
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


class _Classify:
    def __init__(
        self,
        models: Models | LoadedModels,
        class_names: tuple[str, ...],
        templates: tuple[str, ...],
        batch_size: int,
        task: str,
        keep_features: bool,
    ):
        self.task = task
        self.clips, self.batch_size, self.keep_features = models.load(), batch_size, keep_features
        self.weights = {
            name: class_weights(clip, class_names, templates, batch_size=batch_size)
            for name, clip in self.clips.items()
        }

    def __call__(self, images: torch.Tensor, columns: Rows) -> Rows:
        labels = torch.from_numpy(columns["label"])
        found: Rows = {}
        for name, clip in self.clips.items():
            features = encode_images(clip, images, batch_size=self.batch_size)
            scores = (features.double() @ self.weights[name].double().T).float()
            try:
                predicted, top5 = nearest(scores, labels)
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


def _probed(train: Rows, test: Rows, num_classes: int) -> dict[str, float]:
    resources: dict[str, Any] = (
        {"num_gpus": 1} if ray_cluster.num_gpus() else {"num_cpus": max(1, ray_cluster.node_cpus() // 2)}
    )
    # outside the placement group of a sweep's trial, which has no room for it
    probe = ray.remote(scheduling_strategy="DEFAULT", **resources)(_probe)
    predicted, top5 = ray.get(probe.remote(train, test, num_classes))
    rows = Predictions(labels=test["labels"], predicted=predicted, top5=top5, groups=test["groups"])
    metrics = classification_metrics(rows, num_classes=num_classes, metric="acc1")
    return {f"linear_probe_{name}": value for name, value in metrics.items()}


def _probe(train: Rows, test: Rows, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # copies, because arrays from Ray's object store are read-only and torch does not support that
    features, labels = (torch.tensor(train[key], device=device) for key in ("features", "labels"))
    probe = fit_best(features, labels, num_classes=num_classes, seed=PROBE_SEED)
    scores = probe.scores(torch.tensor(test["features"], device=device)).cpu()
    predicted, top5 = nearest(scores, torch.tensor(test["labels"]))
    return predicted.numpy(), top5.numpy()
