"""JPEGs decoded in workers, on a CPU and, if there is one, a GPU: the pixels equal those of decoding tasks.

Formats that the JPEG decoder does not support are decoded in tasks; damaged images are masked."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from orchestrator.config import AugmentationConfig
from orchestrator.training.decoding import Decoding, decode_block, decoded_rows, encoded_rows
from orchestrator.training.jpegs import JpegDecoder
from tests.support.pools import bomb, torn

SIZE = 32
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
# nvJPEG repeats a colour over two pixels where libjpeg interpolates it
TOLERANCE = {"cpu": 1.0, "cuda": 4.0}


def smooth(width: int, height: int) -> Image.Image:
    """Return an image with waves of three colours."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2)
    return Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


PICTURES = {
    "large": encoded(smooth(300, 200)),
    "small": encoded(smooth(20, 25)),
    "grey": encoded(smooth(80, 90).convert("L")),
    "progressive": encoded(smooth(90, 80), progressive=True),
    "no subsampling": encoded(smooth(64, 64), subsampling=0),
    "four colours": encoded(smooth(70, 70).convert("CMYK")),
    "png": encoded(smooth(50, 60), "PNG"),
}
BROKEN = {
    "torn": torn(encoded(smooth(120, 120))),
    "bomb": bomb(),
    "text": b"<html>404</html>",
    "empty": b"",
    "missing": None,
}


def block_of(pictures: dict[str, bytes | None]) -> pa.Table:
    return pa.table(
        {
            "image": pa.array(pictures.values(), pa.large_binary()),
            "caption": ["a picture"] * len(pictures),
            "key": list(pictures),
            "epoch": [1] * len(pictures),
            "ordinal": range(len(pictures)),
        }
    )


def decoding(limit: int = 1_000_000) -> Decoding:
    """Decoding in workers, without draft decoding, with random flips."""
    return Decoding(
        image_size=SIZE,
        decode_in="workers",
        draft_decoding=False,
        max_image_pixels=limit,
        augmentation=AugmentationConfig(scale=(0.3, 1.0), horizontal_flip=True),
        seed=5,
    )


def by_worker(pictures: dict[str, bytes | None], device: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rows, images = JpegDecoder(SIZE, 1_000_000, torch.device(device))(encoded_rows(block_of(pictures), decoding()))
    assert images.dtype == torch.uint8
    assert images.shape == (len(pictures), 3, SIZE, SIZE)
    return rows, images.permute(0, 2, 3, 1).cpu().numpy().astype(int)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_pixels_equal_those_of_decoding_tasks(device: str) -> None:
    rows, images = by_worker(PICTURES, device)
    theirs = decoded_rows(block_of(PICTURES), decoding())
    assert rows["valid"].all()
    for name, ours, expected in zip(PICTURES, images, theirs["image"], strict=True):
        assert np.abs(ours - expected).mean() <= TOLERANCE[device], name
        assert expected.std() > 20, "the image must differ from its mirror image"


def test_only_jpegs_are_sent_encoded() -> None:
    rows = encoded_rows(block_of(PICTURES), decoding())
    is_encoded = {name: bool(box[2]) for name, box in zip(PICTURES, rows["box"], strict=True)}
    assert is_encoded == {name: name not in ("four colours", "png") for name in PICTURES}
    assert all(rows["encoded"][row] == PICTURES[name] for row, name in enumerate(PICTURES) if is_encoded[name])


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_damaged_images_are_masked_and_named_and_do_not_change_others(device: str) -> None:
    rows, images = by_worker({**PICTURES, **BROKEN}, device)
    alone = by_worker(PICTURES, device)[1]
    assert rows["valid"].tolist() == [True] * len(PICTURES) + [False] * len(BROKEN)
    reasons = {key: problem.split(":")[0] for key, problem in zip(rows["key"], rows["problem"], strict=True) if problem}
    assert reasons == {
        "torn": "undecodable",
        "bomb": "too_large",
        "text": "undecodable",
        "empty": "empty",
        "missing": "empty",
    }
    assert np.array_equal(images[: len(PICTURES)], alone)
    assert not images[len(PICTURES) :].any()


def test_images_are_decoded_a_few_at_a_time() -> None:
    large = replace(decoding(), image_size=512, decode_in="tasks")
    block = pa.concat_tables([block_of({"0": PICTURES["png"]})] * 50)
    assert [len(rows["image"]) for rows in decode_block(block, decoding=large)] == [32, 18]
