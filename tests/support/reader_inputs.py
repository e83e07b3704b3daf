"""Inputs for reading training samples, without a selection or a run; and what is read, as rows of batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.clip.tokens import ClipCaptions
from orchestrator.config import AugmentationConfig
from orchestrator.data.keep_list import KeepList
from orchestrator.source import Source
from orchestrator.training.decoding import Decoding, Rows
from orchestrator.training.reader import ReaderInputs
from orchestrator.training.sample_order import SampleOrder
from tests.support.pools import write_catalog


def reader_inputs(
    source: Source, folder: Path, keep_list: type[KeepList], *, epochs: int, batch: int, lanes: int, window: int
) -> ReaderInputs:
    """Return inputs for the pairs of a source that the keep list keeps; the catalog is written to `folder`."""
    tables = [source.catalog(part).table for part in source.parts()]
    rows = [table.num_rows for table in tables]
    catalog = write_catalog(folder, pa.concat_tables(tables).to_pylist(), rows)
    keep = keep_list(catalog.artifact)
    kept = tuple(int(keep.mask(index, num_rows).sum()) for index, num_rows in enumerate(rows))
    return ReaderInputs(
        source=source,
        parts=tuple(source.parts()),
        catalog=catalog,
        keep=keep,
        order=SampleOrder(
            kept_per_part=kept,
            num_samples=epochs * sum(kept),
            global_batch_size=batch,
            num_lanes=lanes,
            window=window,
            seed=3,
        ),
        decoding=plain_decoding(24, context=16, seed=3),
    )


def plain_decoding(image_size: int, *, context: int, seed: int = 0) -> Decoding:
    """Return decoding in tasks with the default augmentation."""
    return Decoding(
        image_size=image_size,
        augmentation=AugmentationConfig(),
        seed=seed,
        decode_in="tasks",
        draft_decoding=True,
        max_image_pixels=10**6,
        captions=ClipCaptions(context),
    )


def rows_of(blocks: Iterable[pa.Table], slots: int, image_size: int) -> list[Rows]:
    """Return the rows of blocks in batches, cell by cell: the slow, obvious version of the loader."""
    columns: dict[str, list[Any]] = {}
    for block in blocks:
        for name in block.column_names:
            columns.setdefault(name, []).extend(block[name].to_pylist())
    if "image" in columns:
        shape = (image_size, image_size, 3)
        columns["image"] = [np.array(image, np.uint8).reshape(shape) for image in columns["image"]]
    num = len(columns.get("key", []))
    return [
        {name: _array(name, values[start : start + slots]) for name, values in columns.items()}
        for start in range(0, num, slots)
    ]


def _array(name: str, values: list[Any]) -> np.ndarray:
    return np.array(values, object) if name in ("key", "problem", "encoded") else np.array(values)
