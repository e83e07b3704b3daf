"""Run evaluation sets through models with Ray: tasks read and decode, actors embed, on all GPUs of the cluster.

Training workers evaluate their own models (`embed.InProcess`): one pass of tasks decodes a set, and each rank takes the
next batch when it has embedded one (`split_batches`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
import ray
import torch
from numpy.typing import NDArray

from orchestrator.config import EvaluationConfig
from orchestrator.data.image_decode import ImageDecoder
from orchestrator.engine import gpus, ray_cluster
from orchestrator.errors import UserError
from orchestrator.evaluation.embed import Make, Ranks, Weights, embedded_classes, on_decodable
from orchestrator.evaluation.image_reader import Rows, read_images
from orchestrator.evaluation.models import Models
from orchestrator.evaluation.sets import EvaluationSet

# a training worker evaluates while its own reading tasks hold CPUs
READ_CPUS = 0.25


class OnRay:
    """Embeds in actors, each of which loads all models: on every GPU or, without GPUs, in one process."""

    def __init__(self, models: Models, settings: EvaluationConfig):
        self.models, self.settings, self.names = models, settings, tuple(models.references)
        self.weights: dict[Any, Weights] = {}

    def classes(self, class_names: Sequence[str], templates: Sequence[str]) -> Weights:
        """Return the class embeddings of every model, computed in one task for all actors and later sets."""
        key = tuple(class_names), tuple(templates)
        if key not in self.weights:
            self.weights[key] = _in_task(partial(_classes, self.models, self.settings), *key)
        return self.weights[key]

    def embed(self, dataset: EvaluationSet, make: Make) -> Iterator[Rows]:
        """Yield one result per batch, in order."""
        num_gpus, size = ray_cluster.num_gpus(), self.settings.batch_size
        embedded = batches_of(dataset, self.models.decoder(), size, cpus=1).map_batches(
            _Actor,
            fn_constructor_args=(self.models, make),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, num_gpus)),
            num_gpus=1 if num_gpus else 0,
        )
        for row in embedded.iter_rows():
            yield row["result"]

    def compute(self, function: Callable[..., Any], *arrays: NDArray, heavy: bool = False) -> Any:
        """Return the result of a function of tensors: in a task with a GPU or, if it is heavy, with half of a node's
        CPUs; otherwise here."""
        if not heavy and not ray_cluster.num_gpus():
            return function(*map(torch.from_numpy, arrays))
        return _in_task(partial(_of_arrays, function), *arrays, cpus=max(1, ray_cluster.node_cpus() // 2))


def batches_of(dataset: EvaluationSet, decoder: ImageDecoder, batch_size: int, *, cpus: float) -> ray.data.Dataset:
    """Return a set as blocks of one batch, across the borders of tars, which tasks read and decode."""
    read = partial(read_images, dataset=dataset, decoder=decoder, batch_size=batch_size)
    parts = [{"part": part.index} for part in dataset.source.parts()]
    decoded = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(read, batch_size=1, num_cpus=cpus)
    # a linear probe splits its rows by position
    decoded.context.execution_options.preserve_order = True
    return decoded.repartition(target_num_rows_per_block=batch_size, strict=True)


def split_batches(
    dataset: EvaluationSet, decoder: ImageDecoder, batch_size: int, *, ranks: Ranks, from_first: Callable[[Any], Any]
) -> Iterator[Rows]:
    """Yield the batches of a set that this rank embeds; every rank calls it, and each batch goes to one of them.

    `from_first` returns rank 0's value on every rank."""
    if ranks.num == 1:
        batches: Any = batches_of(dataset, decoder, batch_size, cpus=READ_CPUS)
    else:
        batches = None
        if ranks.rank == 0:
            split = batches_of(dataset, decoder, batch_size, cpus=READ_CPUS).streaming_split(ranks.num)
            batches = [cloudpickle.dumps(one) for one in split]
        batches = cloudpickle.loads(from_first(batches)[ranks.rank])
    yield from batches.iter_batches(batch_size=batch_size, batch_format="numpy")


def _in_task(function: Callable[..., Any], *arguments: Any, cpus: int = 1) -> Any:
    # outside the placement group of a sweep's trial, which has no room for it
    share: dict[str, Any] = {"num_gpus": 1} if ray_cluster.num_gpus() else {"num_cpus": cpus}
    task = ray.remote(scheduling_strategy="DEFAULT", **share)(_called)
    return ray.get(task.remote(function, *arguments))


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    # Ray takes no `partial` as a task
    return function(*arguments)


def _device() -> torch.device:
    return torch.device("cuda" if gpus.num_own() else "cpu")


def _classes(models: Models, settings: EvaluationConfig, class_names: Any, templates: Any) -> dict[str, torch.Tensor]:
    return embedded_classes(models.load(_device()), class_names, templates, settings)


def _of_arrays(function: Callable[..., Any], *arrays: NDArray) -> Any:
    # copies, because arrays from Ray's object store are read-only and torch does not support that
    return function(*(torch.tensor(array, device=_device()) for array in arrays))


class _Actor:
    def __init__(self, models: Models, make: Make):
        self.error: UserError | None = None
        try:
            self.work = make(models.load(_device()))
        except UserError as error:
            # Ray reports an error of a constructor as the death of the actor, without its cause
            self.error = error

    def __call__(self, batch: Rows) -> Rows:
        if self.error is not None:
            raise self.error
        return {"result": np.array([on_decodable(self.work, batch)], object)}
