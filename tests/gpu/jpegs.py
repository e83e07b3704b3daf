"""The feed of a training worker on a GPU: nvJPEG's stream, the loader's and that of the steps must not touch each
other's memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from orchestrator.clip.tokens import ClipCaptions
from orchestrator.config import AugmentationConfig
from orchestrator.training import jpegs
from orchestrator.training.decoding import Decoding, Rows, decode_block
from orchestrator.training.device_loader import load_batches
from orchestrator.training.jpegs import JpegDecoder
from tests.gpu.harness import Check, at_least, at_most, equal, figure
from tests.gpu.lab import Lab

MAX_PIXELS = 10**8
# JPEG bytes that are decoded together in the race, so that blocks are freed and taken again many times
RACE_CHUNK_BYTES = 100_000
Encoded = tuple[Rows, np.ndarray, np.ndarray]


def race(lab: Lab) -> Iterator[Check]:
    """Decoded pixels are the same bits when the kernels that read them are delayed, and close to the CPU's."""
    decoder = JpegDecoder(lab.size(224, 32), MAX_PIXELS, lab.device)
    encoded = _encoded(lab.size(512, 6), lab)
    with mock.patch.object(jpegs, "CHUNK_BYTES", RACE_CHUNK_BYTES):
        wanted = _decoded(decoder, encoded, lab)
        for number in range(lab.size(3, 1)):
            with _delayed_resizing(lab):
                late = _decoded(decoder, encoded, lab)
            yield equal(f"round {number + 1}: images that change when resizing is delayed", _changed(late, wanted), 0)
    by_cpu = _decoded(JpegDecoder(decoder.image_size, MAX_PIXELS, torch.device("cpu")), encoded, lab)
    off = (wanted.float() - by_cpu.float()).abs().mean().item()
    yield at_most("mean difference from the CPU's decoder, of 255", off, 2.0)
    yield equal("rows that stay valid", int(decoder(*encoded)[0]["valid"].sum()), len(wanted))


def loader(lab: Lab) -> Iterator[Check]:
    """Batches that the loader copies ahead are the same bits when the steps that read them are late."""
    slots, num_batches = lab.size(256, 4), 6
    for decode_in in ("tasks", "workers"):
        decoding = _decoding(lab, decode_in)
        pairs = _pairs(slots * num_batches, lab)
        blocks = list(decode_block(pairs, decoding=decoding))
        cpu = [
            loaded.batch.images.clone()
            for loaded in load_batches(iter(blocks), decoding, slots=slots, device=torch.device("cpu"))
        ]
        late: list[torch.Tensor] = []
        for loaded in load_batches(iter(blocks), decoding, slots=slots, device=lab.device):
            yield from _on_device(loaded.batch.images, decode_in, lab) if not late else ()
            lab.sleep(100)
            late.append(loaded.batch.images.clone())
            del loaded
        lab.wait()
        off = max((one.cpu().float() - other.float()).abs().mean().item() for one, other in zip(late, cpu, strict=True))
        # nvJPEG upsamples colours in its own way
        yield at_most(
            f"{decode_in}: mean difference of a batch from the CPU's", off, 2.0 if decode_in == "workers" else 0
        )


def _on_device(images: torch.Tensor, decode_in: str, lab: Lab) -> Iterator[Check]:
    yield equal(f"{decode_in}: device of the images", images.device.type, lab.device.type)


def speed(lab: Lab) -> Iterator[Check]:
    """Images that a worker decodes and crops in a second, and how one damaged JPEG slows a batch down."""
    decoder = JpegDecoder(lab.size(224, 32), MAX_PIXELS, lab.device)
    rows, encoded, boxes = _encoded(lab.size(1024, 6), lab)
    seconds = lab.median_seconds(lambda: decoder(rows, encoded, boxes), rounds=lab.size(5, 1))
    yield figure("whole JPEGs", len(boxes) / seconds, "images/s")
    damaged = encoded.copy()
    damaged[3] = damaged[3][: len(damaged[3]) // 4] + b"\xff\xd9"
    slower = lab.median_seconds(lambda: decoder(rows, damaged, boxes), rounds=lab.size(3, 1))
    share = seconds / slower
    what = "rate with one damaged JPEG, of the rate without"
    yield figure(what, share) if lab.is_dry else at_least(what, share, 0.5)


def _pictures(num_images: int, lab: Lab) -> Iterator[tuple[bytes, int]]:
    """Yield smooth pictures of three sizes as JPEGs, and their sides."""
    draw = np.random.default_rng(0)
    for row in range(num_images):
        side = (256, 320, 512)[row % 3] // lab.size(1, 4)
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        out = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        yield out.getvalue(), side


def _encoded(num_images: int, lab: Lab) -> Encoded:
    """Return rows, JPEGs, and their middles as the crops."""
    encoded, boxes = np.full(num_images, b"", object), np.zeros((num_images, 5), np.int64)
    for row, (jpeg, side) in enumerate(_pictures(num_images, lab)):
        encoded[row] = jpeg
        boxes[row] = (side // 8, side // 8, side - side // 4, side - side // 4, row % 2)
    rows = {"valid": np.ones(num_images, bool), "problem": np.full(num_images, "", object)}
    return rows, encoded, boxes


def _pairs(num_pairs: int, lab: Lab) -> pa.Table:
    """Return pairs as a reading task gives them to the decoding tasks."""
    numbers = np.arange(num_pairs)
    return pa.table(
        {
            "image": pa.array([jpeg for jpeg, _ in _pictures(num_pairs, lab)], pa.large_binary()),
            "caption": [f"picture number {number}" for number in numbers],
            "key": [f"{number:09d}" for number in numbers],
            "epoch": np.zeros(num_pairs, np.int64),
            "ordinal": numbers,
        }
    )


def _decoding(lab: Lab, decode_in: Any) -> Decoding:
    return Decoding(
        image_size=lab.size(224, 32), augmentation=AugmentationConfig(), seed=0, decode_in=decode_in,
        draft_decoding=False, max_image_pixels=MAX_PIXELS, captions=ClipCaptions(16),
    )  # fmt: skip


def _decoded(decoder: JpegDecoder, encoded: Encoded, lab: Lab) -> torch.Tensor:
    # on a stream beside the default one, as the loader's thread does it
    with nullcontext() if lab.is_dry else torch.cuda.stream(torch.cuda.Stream()):
        _, images = decoder(*encoded)
        lab.wait()
        return images.cpu()


def _changed(got: torch.Tensor, wanted: torch.Tensor) -> int:
    return int((got != wanted).flatten(1).any(dim=1).sum())


@contextmanager
def _delayed_resizing(lab: Lab) -> Iterator[None]:
    """Queue a kernel that sleeps before each resize, so that resizes read decoded pictures late."""

    def late(resize: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any) -> torch.Tensor:
            lab.sleep(5)
            return resize(*args)

        return call

    with ExitStack() as patches:
        for name in ("resized", "resized_together"):
            patches.enter_context(mock.patch.object(jpegs, name, late(getattr(jpegs, name))))
        yield
