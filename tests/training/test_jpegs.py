"""JPEGs decoded in workers, on a CPU and, if there is one, a GPU: the pixels equal those of decoding tasks.

Formats that the JPEG decoder does not support are decoded in tasks; damaged images are masked."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from orchestrator.clip.tokens import ClipCaptions
from orchestrator.config import AugmentationConfig
from orchestrator.data.image_decode import random_resized_crop
from orchestrator.training import jpegs
from orchestrator.training.decoding import MIN_BLOCK_BYTES, Decoding, Rows, decode_block, decoded_rows, encoded_rows
from orchestrator.training.jpegs import JpegDecoder, resized, resized_together
from tests.support.pools import bomb, torn
from tests.support.reader_inputs import rows_of

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
            "caption": [f"a picture, {name}" for name in pictures],
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
        captions=ClipCaptions(12),
    )


def rows_in(block: pa.Table) -> Rows:
    return rows_of([block], block.num_rows, SIZE)[0]


def by_worker(pictures: dict[str, bytes | None], device: str) -> tuple[Rows, np.ndarray]:
    read = rows_in(encoded_rows(block_of(pictures), decoding()))
    rows, images = JpegDecoder(SIZE, 1_000_000, torch.device(device))(read, read["encoded"], read["box"])
    assert images.dtype == torch.uint8
    assert images.shape == (len(pictures), 3, SIZE, SIZE)
    return rows, images.permute(0, 2, 3, 1).cpu().numpy().astype(int)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_pixels_equal_those_of_decoding_tasks(device: str) -> None:
    rows, images = by_worker(PICTURES, device)
    theirs = rows_in(decoded_rows(block_of(PICTURES), decoding()))
    assert rows["valid"].all()
    for name, ours, expected in zip(PICTURES, images, theirs["image"], strict=True):
        assert np.abs(ours - expected).mean() <= TOLERANCE[device], name
        assert expected.std() > 20, "the image must differ from its mirror image"


def test_only_jpegs_are_sent_encoded() -> None:
    rows = rows_in(encoded_rows(block_of(PICTURES), decoding()))
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


def test_blocks_have_as_many_pixels_as_ray_data_puts_into_one() -> None:
    large = replace(decoding(), image_size=512, decode_in="tasks")
    block = pa.concat_tables([block_of({"0": PICTURES["png"]})] * 50)
    assert [rows.num_rows for rows in decode_block(block, decoding=large)] == [32, 18]
    for size in (MIN_BLOCK_BYTES, 4 * MIN_BLOCK_BYTES):
        rows = replace(large, image_size=224, block_bytes=size).block_rows
        assert size <= rows * 3 * 224**2 < 1.1 * size


def test_one_refused_jpeg_among_many_takes_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    bad = BROKEN["torn"]
    assert bad is not None

    def refuse(images: list[torch.Tensor], **options: Any) -> list[torch.Tensor]:
        calls.append(len(images))
        if any(bytes(image.numpy()) == bad for image in images):
            raise RuntimeError("damaged")
        return [torch.full((3, 4, 4), image.numel()) for image in images]

    monkeypatch.setattr(jpegs, "decode_jpeg", refuse)
    whole = [torch.frombuffer(bytearray(b"jpeg" * (row + 1)), dtype=torch.uint8) for row in range(200)]
    whole[77] = torch.frombuffer(bytearray(bad), dtype=torch.uint8)
    found = JpegDecoder(SIZE, 1_000_000, torch.device("cpu"))._decoded(whole)
    assert [row for row, image in enumerate(found) if image is None] == [77]
    assert [int(image[0, 0, 0]) for image in found if image is not None] == [
        4 * row + 4 for row in range(200) if row != 77
    ]
    assert len(calls) <= 1 + 2 * 8


@pytest.mark.parametrize(("width", "height"), [(300, 200), (33, 31), (20, 25), (9, 64)])
def test_images_of_one_size_are_resized_together_as_one_by_one(width: int, height: int) -> None:
    draw = np.random.default_rng(width)
    images = torch.from_numpy(draw.integers(0, 256, (12, 3, height, width), dtype=np.uint8))
    crop = partial(random_resized_crop, width, height, scale=(0.1, 1.0), ratio=(0.5, 2.0), horizontal_flip=True, seed=1)
    crops = [crop(epoch=0, ordinal=row) for row in range(12)]
    boxes = np.array([(crop.left, crop.top, crop.width, crop.height, crop.flip) for crop in crops])
    assert 0 < boxes[:, 4].sum() < 12
    found = resized_together(images, boxes, SIZE).int()
    expected = torch.stack([resized(image, crop, SIZE) for image, crop in zip(images, crops, strict=True)]).int()
    difference = (found - expected).abs()
    # sums in another order: a value at a half is rounded to the other side
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3


def test_a_gpu_decodes_after_the_work_that_reads_the_memory_it_may_get(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Stream:
        def synchronize(self) -> None:
            events.append("synchronised")

    def decode(images: list[torch.Tensor], **options: Any) -> list[torch.Tensor]:
        events.append(f"decoded {len(images)}")
        if len(images) > 1:
            raise RuntimeError("one is damaged")
        return images

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(jpegs, "decode_jpeg", decode)
    JpegDecoder(SIZE, 1_000_000, torch.device("cuda"))._decoded([torch.zeros(1), torch.zeros(1)])
    assert events == ["synchronised", "decoded 2", "synchronised", "decoded 1", "synchronised", "decoded 1"]


@pytest.mark.parametrize("draft", [False, True])
def test_torch_resizes_like_pillow(draft: bool) -> None:
    in_tasks = replace(decoding(), decode_in="tasks", draft_decoding=draft)
    expected = rows_in(decoded_rows(block_of(PICTURES), in_tasks))["image"].astype(int)
    found = rows_in(decoded_rows(block_of(PICTURES), replace(in_tasks, resize_with="torch")))["image"].astype(int)
    difference = np.abs(found - expected)
    if draft:
        # the box of a draft is rounded to whole pixels
        assert difference.mean() < 3
        return
    # at the edges, Pillow sees the pixels around the box
    assert difference.max() <= 24
    assert 0 < difference[:, 5:-5, 5:-5].max() <= 4
    assert difference.mean() < 0.3
