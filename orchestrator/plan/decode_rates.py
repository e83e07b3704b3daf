"""Pictures by themselves: how long a core decodes one, and how long a model looks at it.

Training in a probe takes a few steps, before which its reading has run ahead; so what the cores can decode is measured
apart. Both are measured in tasks, by the code of training and of evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from orchestrator.config import Config
from orchestrator.data.catalog import Catalog
from orchestrator.engine import ray_cluster
from orchestrator.source import PAIR_COLUMNS, Source, Status
from orchestrator.training.decoding import Decoding, decode_block

NUM_DECODED = 256
# of images and of captions; a GPU is busy with a batch of them
NUM_ENCODED_CPU, NUM_ENCODED_GPU = 8, 256


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Of a model in a process of its own: seconds for an image and for a caption, on a GPU where there is one; core
    seconds to decode an image; the resident memory."""

    image_seconds: float
    text_seconds: float
    decode_seconds: float
    peak_bytes: int = 0


def decode_seconds(config: Config, source: Source, catalog: Catalog, model_uri: str) -> float:
    """Core seconds that a picture of the pool takes from its bytes to what the training workers get."""
    task: Any = ray.remote(scheduling_strategy="DEFAULT")(_decode_seconds)
    found: float = ray.get(task.remote(config, source, catalog, model_uri))
    return found


def _decode_seconds(config: Config, source: Source, catalog: Catalog, model_uri: str) -> float:
    from orchestrator.evaluation.embed import Models

    training = config.training
    decoding = Decoding(
        image_size=Models(references={"model": model_uri}).image_size(),
        augmentation=training.augmentation,
        seed=training.seed,
        decode_in=training.decode_in,
        draft_decoding=training.draft_decoding,
        max_image_pixels=training.max_image_pixels,
    )
    block = _pairs(source, catalog)
    return _second(lambda: list(decode_block(block, decoding=decoding)), time.process_time) / max(1, block.num_rows)


def _pairs(source: Source, catalog: Catalog) -> pa.Table:
    """Some pairs of the first part that has any, as reading gives them to decoding."""
    parts = catalog.parts_of(source)
    part = next(part for part, rows in zip(parts, catalog.rows_per_part, strict=True) if rows)
    table = catalog.table(part.index, PAIR_COLUMNS)
    usable = np.flatnonzero(table["status"].to_numpy() == Status.OK)[:NUM_DECODED]
    rows = table.take(usable)
    images = pa.array(list(source.images(part, rows)), pa.large_binary())
    columns = {"image": images, "caption": rows["caption"], "key": rows["key"]}
    return pa.table(columns | {"epoch": np.zeros(len(usable), np.int64), "ordinal": usable})


def forward(model_uri: str, decode_seconds: float) -> Forward:
    """The model, as an actor of evaluation has it."""
    # Ray gives a task without GPUs one thread, as it does the actor
    task: Any = ray.remote(scheduling_strategy="DEFAULT", num_gpus=1 if ray_cluster.num_gpus() else 0)(_forward)
    found: Forward = ray.get(task.remote(model_uri, decode_seconds))
    return found


def _forward(model_uri: str, decode_seconds: float) -> Forward:
    import torch

    from orchestrator.clip.features import encode_images, encode_texts
    from orchestrator.engine.metering import peak_bytes
    from orchestrator.evaluation.embed import Models

    clip = Models(references={"model": model_uri}).load()["model"]
    num = NUM_ENCODED_GPU if torch.cuda.is_available() else NUM_ENCODED_CPU
    images = torch.zeros((num, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
    captions = ["a photo of something"] * num
    return Forward(
        image_seconds=_second(lambda: encode_images(clip, images, batch_size=num), time.perf_counter) / num,
        text_seconds=_second(lambda: encode_texts(clip, captions, batch_size=num), time.perf_counter) / num,
        decode_seconds=decode_seconds,
        peak_bytes=peak_bytes(),
    )


def _second(call: Callable[[], object], clock: Callable[[], float]) -> float:
    # the first one loads libraries
    call()
    started = clock()
    call()
    return clock() - started
