"""Read and decode evaluation sets in Ray Data tasks. Without torch, which every task would have to import."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from orchestrator.data.image_decode import BadImage, ImageDecoder
from orchestrator.evaluation.sets import read_samples

Rows = dict[str, Any]


def read_images(batch: Rows, *, decoder: ImageDecoder, batch_size: int, needs_label: bool) -> Iterator[Rows]:
    """Decode the samples of the tars at `batch["uri"]`; yield batches of columns.

    Columns: `image` uint8 [n, size, size, 3], `label`, `caption`, `group`, and `valid`. An image that cannot be decoded
    is black and not `valid`."""
    for uri in batch["uri"]:
        rows: list[tuple] = []
        for sample in read_samples(uri, needs_label=needs_label):
            try:
                rows.append((decoder.decode(sample.image), sample.label, sample.caption, sample.group, True))
            except BadImage:
                black = np.zeros((decoder.size, decoder.size, 3), np.uint8)
                rows.append((black, sample.label, sample.caption, sample.group, False))
            if len(rows) == batch_size:
                yield _columns(rows)
                rows = []
        if rows:
            yield _columns(rows)


def _columns(rows: list[tuple]) -> Rows:
    images, labels, captions, groups, valid = zip(*rows, strict=True)
    return {
        "image": np.stack(images),
        "label": np.array(labels, np.int64),
        "caption": np.array(captions, object),
        "group": np.array(groups, np.int64),
        "valid": np.array(valid),
    }
