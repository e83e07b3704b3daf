"""Evaluation sets as Ray Data's tasks read and decode them; no torch here, which each of those tasks would import."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from orchestrator.data.image_decode import BadImage, Pictures
from orchestrator.evaluation.sets import read_samples

Rows = dict[str, Any]


def read_pictures(batch: Rows, *, pictures: Pictures, batch_size: int, needs_label: bool) -> Iterator[Rows]:
    """The samples of the tars at `batch["uri"]`, decoded, in batches of columns: `image` uint8 [n, size, size, 3],
    `label`, `caption`, `group`, and `valid`, False (and the image black) where the picture cannot be decoded."""
    for uri in batch["uri"]:
        rows: list[tuple] = []
        for sample in read_samples(uri, needs_label=needs_label):
            try:
                rows.append((pictures.decode(sample.image), sample.label, sample.caption, sample.group, True))
            except BadImage:
                black = np.zeros((pictures.size, pictures.size, 3), np.uint8)
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
