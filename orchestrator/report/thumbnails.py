"""Make thumbnails of the pairs on the page: decoded as in training, encoded as WebP, embedded as data URIs.

When a report is rebuilt, the source may have changed or be gone. The page then shows captions and the reason."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
from PIL import Image

from orchestrator.config import parse
from orchestrator.data.catalog import Catalog
from orchestrator.data.image_decode import BadImage, decode
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.run_record import RunRecord
from orchestrator.errors import UserError
from orchestrator.report.schema_pairs import Example
from orchestrator.source import IMAGE_COLUMNS, Part, Source, open_source

PIXELS = 128
WEBP_QUALITY = 80
PARTS_AT_ONCE = 8
Position = tuple[int, int]


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails by (part, row): data `uris`, and `problems` of images that cannot be shown.

    `missing` is the reason if there are no images at all."""

    uris: dict[Position, str] = field(default_factory=dict)
    problems: dict[Position, str] = field(default_factory=dict)
    missing: str | None = None


def read_thumbnails(record: RunRecord, catalog: Artifact, pairs: Sequence[Example]) -> Thumbnails:
    """Read the images of the pairs and return their thumbnails, about 5 KiB of text each."""
    config = parse(record.config)
    try:
        source = open_source(config.source)
        if not source.has_images:
            return Thumbnails(missing="The source is a caption table without images.")
        if not Catalog(catalog).is_of(source):
            return Thumbnails(missing="Images are not shown, because the source changed after its catalog was made.")
        return _read(source, Catalog(catalog), pairs, config.training.max_image_pixels)
    except (OSError, UserError) as error:
        return Thumbnails(missing=f"Images are not shown, because the source can no longer be read ({error}).")


def _read(source: Source, catalog: Catalog, pairs: Sequence[Example], max_pixels: int) -> Thumbnails:
    thumbnails, parts = Thumbnails(), catalog.parts_of(source)
    rows: dict[int, set[int]] = {}
    for pair in pairs:
        rows.setdefault(pair.part, set()).add(pair.row)

    def read(index: int) -> None:
        _read_part(source, catalog, parts[index], index, sorted(rows[index]), max_pixels, thumbnails)

    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        list(pool.map(read, sorted(rows)))
    return thumbnails


def _read_part(
    source: Source, catalog: Catalog, part: Part, index: int, rows: list[int], max_pixels: int, into: Thumbnails
) -> None:
    wanted = catalog.table(index, IMAGE_COLUMNS).take(pa.array(rows, pa.int64()))
    for row, data in zip(rows, source.images(part, wanted), strict=True):
        try:
            into.uris[index, row] = thumbnail(data or b"", max_pixels)
        except BadImage as error:
            into.problems[index, row] = str(error)


def thumbnail(data: bytes, max_pixels: int) -> str:
    """Return a WebP data URI of the image's centre, 128 x 128. Errors: `BadImage` if it cannot be decoded."""
    out = io.BytesIO()
    Image.fromarray(decode(data, size=PIXELS, max_pixels=max_pixels)).save(out, "WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
