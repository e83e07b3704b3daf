"""Exported images are named after their format, in every format that is decoded."""

from __future__ import annotations

import io

from PIL import Image

from orchestrator.data.image_decode import FORMATS
from orchestrator.export.shards import MAGIC
from orchestrator.source.header import IMAGE_EXTENSIONS, is_image


def test_every_decoded_format_is_recognised_and_named() -> None:
    names = {}
    for kind in FORMATS:
        out = io.BytesIO()
        Image.new("RGB", (40, 30)).save(out, kind)
        assert is_image(out.getvalue()), kind
        names[kind] = MAGIC[out.getvalue()[:2]]
    assert names == {
        "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif",
    }  # fmt: skip
    assert set(names.values()) <= IMAGE_EXTENSIONS
