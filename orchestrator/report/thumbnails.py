"""Thumbnails of the pairs shown: decoded as training decodes them, encoded anew, carried inside the page.

A source may be gone or changed by the time a report is rebuilt: then the page shows captions and says why."""

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
from orchestrator.report.entry import Example
from orchestrator.source import IMAGE_COLUMNS, Part, Source, open_source

PIXELS = 128
WEBP_QUALITY = 80
PARTS_AT_ONCE = 8
Place = tuple[int, int]


@dataclass(frozen=True)
class Pictures:
    """Data URIs by (part, row); `problems` where a picture cannot be shown; `missing` says why there is none at all."""

    uris: dict[Place, str] = field(default_factory=dict)
    problems: dict[Place, str] = field(default_factory=dict)
    missing: str | None = None


def pictures_of(record: RunRecord, catalog: Artifact, pairs: Sequence[Example]) -> Pictures:
    """The pictures of the pairs, each some 5 KiB of text."""
    config = parse(record.config)
    try:
        source = open_source(config.source)
        if not source.has_images:
            return Pictures(missing="The source is a caption table: it has no pictures.")
        if not Catalog(catalog).is_of(source):
            return Pictures(missing="The source has changed since it was catalogued, so its pictures are not shown.")
        return _read(source, Catalog(catalog), pairs, config.training.max_image_pixels)
    except (OSError, UserError) as error:
        return Pictures(missing=f"The source can no longer be read, so its pictures are not shown ({error}).")


def _read(source: Source, catalog: Catalog, pairs: Sequence[Example], max_pixels: int) -> Pictures:
    pictures, parts = Pictures(), catalog.parts_of(source)
    rows: dict[int, set[int]] = {}
    for pair in pairs:
        rows.setdefault(pair.part, set()).add(pair.row)

    def read(index: int) -> None:
        _read_part(source, catalog, parts[index], index, sorted(rows[index]), max_pixels, pictures)

    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        list(pool.map(read, sorted(rows)))
    return pictures


def _read_part(
    source: Source, catalog: Catalog, part: Part, index: int, rows: list[int], max_pixels: int, into: Pictures
) -> None:
    wanted = catalog.table(index, IMAGE_COLUMNS).take(pa.array(rows, pa.int64()))
    for row, data in zip(rows, source.images(part, wanted), strict=True):
        try:
            into.uris[index, row] = thumbnail(data or b"", max_pixels)
        except BadImage as error:
            into.problems[index, row] = str(error)


def thumbnail(data: bytes, max_pixels: int) -> str:
    """A WebP data URI of the image's centre, 128 x 128. Errors: `BadImage` for what cannot be decoded."""
    out = io.BytesIO()
    Image.fromarray(decode(data, size=PIXELS, max_pixels=max_pixels)).save(out, "WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
