"""JPEG decoding in a training worker: the decoder's stream and ours must not touch each other's memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from orchestrator.training import jpegs
from orchestrator.training.decoding import Rows
from orchestrator.training.jpegs import JpegDecoder
from tests.gpu.harness import Check, at_least, at_most, equal, figure
from tests.gpu.lab import Lab

MAX_PIXELS = 10**8
# JPEG bytes that are decoded together in the race, so that blocks are freed and taken again many times
RACE_CHUNK_BYTES = 100_000


def race(lab: Lab) -> Iterator[Check]:
    """Decoded pixels are the same bits when the kernels that read them are delayed, and close to Pillow's."""
    decoder = JpegDecoder(lab.size(224, 32), MAX_PIXELS, lab.device)
    rows = _rows(lab.size(512, 6), lab)
    delayed = []
    with mock.patch.object(jpegs, "CHUNK_BYTES", RACE_CHUNK_BYTES):
        wanted = _decoded(decoder, rows, lab)
        for _ in range(lab.size(3, 1)):
            with _delayed_resizing(lab):
                delayed.append(_decoded(decoder, rows, lab))
        # the steps still read a batch while the next one is decoded into memory that it may have freed
        used = _delayed_use(decoder, rows, lab)
    changed = max(int((one != wanted).any(dim=(1, 2, 3)).sum()) for one in delayed)
    yield equal(f"images of {len(wanted)} that change when resizing is delayed", changed, 0)
    yield equal("images that change when the step is delayed", int((used != wanted).any(dim=(1, 2, 3)).sum()), 0)
    by_pillow = _decoded(JpegDecoder(decoder.image_size, MAX_PIXELS, torch.device("cpu")), rows, lab)
    off = (wanted.float() - by_pillow.float()).abs().mean().item()
    yield at_most("mean difference from the CPU's decoder, of 255", off, 2.0)
    yield equal("rows that stay valid", int(decoder(rows)[0]["valid"].sum()), len(wanted))


def speed(lab: Lab) -> Iterator[Check]:
    """Images that a worker decodes and crops in a second, and how one damaged JPEG slows a batch down."""
    decoder = JpegDecoder(lab.size(224, 32), MAX_PIXELS, lab.device)
    rows = _rows(lab.size(1024, 6), lab)
    seconds = lab.median_seconds(lambda: decoder(rows), rounds=lab.size(5, 1))
    yield figure("whole JPEGs", len(rows["valid"]) / seconds, "images/s")
    damaged = {**rows, "encoded": rows["encoded"].copy()}
    data = damaged["encoded"][3]
    damaged["encoded"][3] = data[: len(data) // 4] + b"\xff\xd9"
    slower = lab.median_seconds(lambda: decoder(damaged), rounds=lab.size(3, 1))
    if lab.is_dry:
        yield figure("rate with one damaged JPEG, of the rate without", seconds / slower)
    else:
        yield at_least("rate with one damaged JPEG, of the rate without", seconds / slower, 0.5)


def _rows(num_images: int, lab: Lab) -> Rows:
    """Return rows as decoding tasks make them: smooth pictures of three sizes, their middle as the crop."""
    draw = np.random.default_rng(0)
    encoded, boxes = np.full(num_images, b"", object), np.zeros((num_images, 5), np.int64)
    for row in range(num_images):
        side = (256, 320, 512)[row % 3] // lab.size(1, 4)
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        out = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        encoded[row] = out.getvalue()
        boxes[row] = (side // 8, side // 8, side - side // 4, side - side // 4, row % 2)
    return {
        "encoded": encoded,
        "box": boxes,
        "valid": np.ones(num_images, bool),
        "problem": np.full(num_images, "", object),
    }


def _decoded(decoder: JpegDecoder, rows: Rows, lab: Lab) -> torch.Tensor:
    _, images = decoder(rows)
    lab.wait()
    return images.cpu()


@contextmanager
def _delayed_resizing(lab: Lab) -> Iterator[None]:
    """Queue a kernel that sleeps before each resize, so that resizes read decoded pictures late."""
    resize = F.interpolate

    def late(*args: Any, **options: Any) -> torch.Tensor:
        lab.sleep(2)
        return resize(*args, **options)

    with mock.patch.object(F, "interpolate", late):
        yield


def _delayed_use(decoder: JpegDecoder, rows: Rows, lab: Lab) -> torch.Tensor:
    """Return a batch as a late kernel of the steps' stream reads it, with other batches decoded in the meantime."""
    _, images = decoder(rows)
    lab.sleep(200)
    read = images.clone()
    del images
    others = {**rows, "encoded": rows["encoded"][::-1].copy(), "box": rows["box"][::-1].copy()}
    for _ in range(3):
        decoder(others)
    lab.wait()
    return read.cpu()
