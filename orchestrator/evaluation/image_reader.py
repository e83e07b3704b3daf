"""Read and decode evaluation sets in Ray Data tasks. Without torch, which every task would have to import."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from orchestrator.data.image_decode import BadImage, ImageDecoder
from orchestrator.evaluation.samples import read_samples
from orchestrator.evaluation.sets import EvaluationSet

Rows = dict[str, Any]


def read_images(batch: Rows, *, dataset: EvaluationSet, decoder: ImageDecoder, batch_size: int) -> Iterator[Rows]:
    """Decode the samples of the parts with the numbers `batch["part"]`; yield batches of columns.

    Columns: `image` uint8 [n, size, size, 3], `label`, `caption`, `group`, `valid`, and the position: `part` and `row`,
    the number of the sample in its part. A sample that cannot be used or decoded is black and not `valid`."""
    parts = dataset.source.parts()
    for index in batch["part"]:
        rows: list[tuple] = []
        for row, sample in enumerate(read_samples(dataset, parts[index])):
            image = _decoded(decoder, sample.image)
            black = np.zeros((decoder.size, decoder.size, 3), np.uint8)
            pixels = black if image is None else image
            rows.append((pixels, sample.label, sample.caption, sample.group, image is not None, int(index), row))
            if len(rows) == batch_size:
                yield _columns(rows)
                rows = []
        if rows:
            yield _columns(rows)


def _decoded(decoder: ImageDecoder, data: bytes | None) -> np.ndarray | None:
    try:
        return None if data is None else decoder.decode(data)
    except BadImage:
        return None


def _columns(rows: list[tuple]) -> Rows:
    images, labels, captions, groups, valid, parts, places = zip(*rows, strict=True)
    return {
        "image": np.stack(images),
        "label": np.array(labels, np.int64),
        "caption": np.array(captions, object),
        "group": np.array(groups, np.int64),
        "valid": np.array(valid),
        "part": np.array(parts, np.int64),
        "row": np.array(places, np.int64),
    }
