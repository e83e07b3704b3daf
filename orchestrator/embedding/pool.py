"""Input of the encoder: reading tasks send the pairs of a part with something to embed, decoding tasks make pixels and
tokens, so that the process of the encoder only copies arrays to its device.

A row carries its position (part, row) and `expected`, the number of rows that its part sends: so batches can cross the
borders of parts, and the writer still knows where a row belongs. A read error is raised, and never counted as a bad
image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from orchestrator.clip.tokens import Captions
from orchestrator.config.embedding import Tower
from orchestrator.data.catalog import Catalog
from orchestrator.data.image_decode import BadImage, ImageDecoder, decode
from orchestrator.engine.process_cache import fetched
from orchestrator.source import PAIR_COLUMNS, Part, Source, has_image

BLOCK_BYTES = 16 * 2**20

Rows = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What reading and decoding tasks need; it is sent to each of their processes once.

    `tokenize` belongs to the text tower, if there is one. `draft`: decode JPEGs that are much larger than needed at a
    fraction of their size."""

    source: Source
    parts: tuple[Part, ...]
    catalog: Catalog
    towers: tuple[Tower, ...]
    decoder: ImageDecoder
    tokenize: Captions | None
    draft: bool = False

    def usable(self, index: int) -> tuple[pa.Table, NDArray[np.int64]]:
        """The pairs of a part with something to embed: their rows of the catalog, and their row numbers int64 [n]."""
        table = self.catalog.table(index, PAIR_COLUMNS)
        caption = pc.utf8_trim_whitespace(pc.fill_null(table["caption"], ""))
        wanted = np.zeros(table.num_rows, bool)
        if "image" in self.towers:
            wanted |= has_image(table["status"]).to_numpy()
        if "text" in self.towers:
            wanted |= pc.greater(pc.utf8_length(caption), 0).to_numpy()
        rows = np.flatnonzero(wanted)
        return table.take(rows), rows


def read_part(batch: Rows, *, reference: ray.ObjectRef, rows_per_block: int) -> Iterator[pa.Table]:
    """The usable pairs of a part in row order, in blocks of up to `rows_per_block` rows or about 16 MB of images.

    A part without usable pairs sends one row with row number -1: the writer then writes the part, too."""
    pool: Pool = fetched(reference)
    for index in batch["part"].tolist():
        table, rows = pool.usable(index)
        images = _images(pool, index, table)
        if not len(rows):
            yield _block(index, [-1], [""], [None], [None], expected=0)
        start, waiting, num_bytes = 0, list[bytes | None](), 0
        for stop, image in enumerate(images, 1):
            waiting.append(image)
            num_bytes += len(image or b"")
            if len(waiting) == rows_per_block or num_bytes >= BLOCK_BYTES or stop == len(rows):
                chunk = table.slice(start, stop - start)
                labels = chunk["key"].to_pylist(), chunk["caption"].to_pylist()
                yield _block(index, rows[start:stop], *labels, waiting, expected=len(rows))
                start, waiting, num_bytes = stop, [], 0


def _images(pool: Pool, index: int, table: pa.Table) -> Iterator[bytes | None]:
    if "image" not in pool.towers:
        yield from (None for _ in range(table.num_rows))
        return
    is_picture = has_image(table["status"]).to_numpy()
    found = pool.source.images(pool.parts[index], table.filter(pa.array(is_picture)))
    for is_usable in is_picture:
        yield next(found) if is_usable else None


def _block(index: int, rows: Any, keys: list, captions: list, images: list, *, expected: int) -> pa.Table:
    num_rows = len(keys)
    return pa.table(
        {
            "part": pa.array(np.full(num_rows, index, np.int32)),
            "row": pa.array(np.asarray(rows, np.int64)),
            "expected": pa.array(np.full(num_rows, expected, np.int64)),
            "key": pa.array(keys, pa.string()),
            "caption": pa.array(captions, pa.large_string()),
            "image": pa.array(images, pa.large_binary()),
        }
    )


def decode_rows(batch: pa.Table, *, reference: ray.ObjectRef) -> Rows:
    """Replaces encoded images and captions by what the towers of the pool take.

    Images: `image` uint8 [n, size, size, 3], `has_image` bool [n], and `problem`, the reason why an image is unusable
    (empty for a usable image, and where there is none). Captions: `tokens` int32 [n, context] and `has_text` bool
    [n]."""
    pool: Pool = fetched(reference)
    columns = {name: batch[name].to_numpy() for name in ("part", "row", "expected", "key")}
    if "image" in pool.towers:
        columns |= _pixels(batch["image"], pool)
    if pool.tokenize is not None:
        captions = [caption or "" for caption in batch["caption"].to_pylist()]
        columns["tokens"] = pool.tokenize(captions)
        columns["has_text"] = np.array([bool(caption.strip()) for caption in captions])
    return columns


def _pixels(encoded: pa.ChunkedArray, pool: Pool) -> Rows:
    decoder, crop = pool.decoder, pool.decoder.cropper()
    pixels = np.zeros((len(encoded), decoder.size, decoder.size, 3), np.uint8)
    has_image, problems = np.zeros(len(encoded), bool), np.full(len(encoded), "", object)
    for place, data in enumerate(encoded):
        if not data.is_valid:
            continue
        try:
            pixels[place] = decode(
                data.as_py(),
                size=decoder.size,
                crop=crop,
                max_pixels=decoder.max_pixels,
                draft=pool.draft,
                interpolation=decoder.interpolation,
            )
            has_image[place] = True
        except BadImage as error:
            problems[place] = error.reason
    return {"image": pixels, "has_image": has_image, "problem": problems}
