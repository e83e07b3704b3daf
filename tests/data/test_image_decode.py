from __future__ import annotations

import io
import struct
import zlib
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from orchestrator.data.image_decode import DRAFT_MARGIN, BadImage, Crop, decode, evaluation_crop, random_resized_crop
from tests.support.pools import DEMO_TABLE

LIMIT = 89_478_485


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with edges and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 7) * np.cos(y / 5)], axis=-1)
    pixels[height // 3 : height // 2, width // 4 :] = 255 - pixels[height // 3 : height // 2, width // 4 :]
    return np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("width", "height"), [(300, 200), (200, 300), (97, 64), (64, 64), (50, 40), (641, 427), (31, 500), (224, 223)]
)
@pytest.mark.parametrize("size", [64, 224])
def test_evaluation_gives_the_pixels_of_torchvision(width: int, height: int, size: int) -> None:
    from torchvision.transforms import v2

    pixels = scene(width, height)
    interpolation = v2.InterpolationMode.BICUBIC
    transform = v2.Compose([v2.Resize(size, interpolation=interpolation), v2.CenterCrop(size)])
    expected = np.asarray(transform(Image.fromarray(pixels))).astype(int)
    got = decode(encode(pixels), size=size, max_pixels=LIMIT)
    assert got.shape == (size, size, 3)
    assert got.dtype == np.uint8
    # Pillow rounds to 8 bits between its two passes, and their order depends on the box: a few levels on noise
    assert np.abs(got.astype(int) - expected).max() <= 8
    assert np.abs(got.astype(int) - expected).mean() < 0.25


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_evaluation_gives_the_pixels_of_open_clip(kind: str) -> None:
    from open_clip.transform import image_transform

    data = encode(scene(150, 111), kind)
    transform = image_transform(64, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    expected = transform(Image.open(io.BytesIO(data))).permute(1, 2, 0).numpy() * 255
    assert np.abs(decode(data, size=64, max_pixels=LIMIT) - expected).max() <= 1.01


def test_the_result_is_the_given_box() -> None:
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[20:40, 10:50] = (10, 200, 30)
    crop = partial(random_resized_crop, scale=(0.05, 0.3), ratio=(0.75, 4 / 3), seed=1, epoch=0, ordinal=5)
    box = crop(80, 60)
    seen = decode(encode(pixels), size=32, crop=crop, max_pixels=LIMIT)
    left, top = int(box.left), int(box.top)
    inside = Image.fromarray(pixels[top : top + int(box.height), left : left + int(box.width)])
    expected = np.asarray(inside.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(seen.astype(int) - expected)[4:-4, 4:-4].max() <= 1


def test_a_flip_mirrors_the_image() -> None:
    crop = partial(random_resized_crop, scale=(0.5, 1.0), ratio=(0.75, 4 / 3), seed=0, epoch=0)
    flipped = next(i for i in range(99) if crop(40, 40, ordinal=i, horizontal_flip=True).flip)
    data = encode(scene(40, 40))
    plain = decode(data, size=16, crop=partial(crop, ordinal=flipped), max_pixels=LIMIT)
    mirrored = decode(data, size=16, crop=partial(crop, ordinal=flipped, horizontal_flip=True), max_pixels=LIMIT)
    assert np.array_equal(mirrored, plain[:, ::-1])
    assert mirrored.flags.c_contiguous


def test_a_crop_is_a_function_of_seed_epoch_and_ordinal() -> None:
    crop = partial(random_resized_crop, 640, 480, scale=(0.1, 1.0), ratio=(0.75, 4 / 3))
    keys = [(seed, epoch, ordinal) for seed in (-1, 0, 1) for epoch in range(3) for ordinal in (0, 1, 2, 10**12)]
    crops = [crop(seed=seed, epoch=epoch, ordinal=ordinal) for seed, epoch, ordinal in keys]
    assert len(set(crops)) == len(keys)
    again = [crop(seed=seed, epoch=epoch, ordinal=ordinal) for seed, epoch, ordinal in reversed(keys)]
    assert again[::-1] == crops


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((400, 300), (0.08, 1.0), (0.75, 4 / 3)),
        ((300, 300), (0.9, 1.0), (0.75, 4 / 3)),
        ((500, 90), (0.5, 1), (0.5, 2.0)),
    ],
)
def test_crops_have_the_distribution_of_torchvision(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image, num = Image.new("L", size), 4000
    boxes = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(num)]
    theirs = np.array([(left, top, width, height) for top, left, height, width in boxes], dtype=float)
    crops = [random_resized_crop(*size, scale=scale, ratio=ratio, seed=3, epoch=0, ordinal=i) for i in range(num)]
    ours = np.array([(crop.left, crop.top, crop.width, crop.height) for crop in crops])
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()
    for name, values in _quantities(ours).items():
        gap = _largest_gap(values, _quantities(theirs)[name])
        assert gap < 1.95 * np.sqrt(2 / num), name  # Kolmogorov-Smirnov at about 0.001


def _quantities(boxes: np.ndarray) -> dict[str, np.ndarray]:
    left, top, width, height = boxes.T
    return {"left": left, "top": top, "width": width, "area": width * height, "aspect": width / height}


def _largest_gap(a: np.ndarray, b: np.ndarray) -> float:
    points = np.union1d(a, b)
    ranks = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@pytest.mark.parametrize(("width", "height"), [(100, 60), (60, 100), (64, 64), (1, 1), (1, 500)])
def test_full_scale_and_unit_ratio_make_a_centre_crop(width: int, height: int) -> None:
    crop = random_resized_crop(width, height, scale=(1, 1), ratio=(1, 1), seed=0, epoch=0, ordinal=0)
    side = min(width, height)
    assert (crop.width, crop.height) == (side, side)
    assert (crop.left, crop.top) == ((width - side) // 2, (height - side) // 2)


def test_the_fallback_box_is_that_of_torchvision() -> None:
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    for width, height in ((1000, 20), (20, 1000), (333, 10)):
        top, left, h, w = RandomResizedCrop.get_params(Image.new("L", (width, height)), [1.0, 1.0], [0.75, 4 / 3])
        crop = random_resized_crop(width, height, scale=(1, 1), ratio=(0.75, 4 / 3), seed=0, epoch=0, ordinal=0)
        assert (crop.left, crop.top, crop.width, crop.height) == (left, top, w, h)


def images_of_every_mode() -> dict[str, bytes]:
    rgb = Image.fromarray(np.full((20, 20, 3), (200, 60, 30), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(128)
    grey16 = Image.fromarray(np.full((20, 20), 0x8000, dtype=np.uint16))
    return {
        "RGB": encode(rgb), "RGBA": encode(rgba), "P": encode(rgb.convert("P", palette=Image.Palette.ADAPTIVE)),
        "CMYK": encode(rgb.convert("CMYK"), "JPEG", quality=95), "L": encode(rgb.convert("L")),
        "LA": encode(rgb.convert("LA")), "1": encode(rgb.convert("1")), "I;16": encode(grey16),
        "WEBP": encode(rgba, "WEBP", lossless=True), "GIF": encode(rgb, "GIF"),
    }  # fmt: skip


@pytest.mark.parametrize("mode", list(images_of_every_mode()))
def test_every_mode_becomes_rgb(mode: str) -> None:
    pixels = decode(images_of_every_mode()[mode], size=8, max_pixels=LIMIT).astype(int)
    assert pixels.shape == (8, 8, 3)
    if mode in ("RGB", "RGBA", "P", "CMYK", "WEBP", "GIF"):
        assert np.abs(pixels - (200, 60, 30)).max() <= 8
    if mode == "I;16":
        assert (pixels == 128).all()


def test_exif_rotation_is_not_applied() -> None:
    pixels = scene(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = decode(encode(pixels, "JPEG", exif=exif), size=16, max_pixels=LIMIT)
    assert np.array_equal(rotated, decode(encode(pixels, "JPEG"), size=16, max_pixels=LIMIT))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.9])
def test_a_truncated_image_is_bad(kind: str, fraction: float) -> None:
    data = encode(scene(120, 90), kind)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * fraction)], size=16, max_pixels=LIMIT)


@pytest.mark.parametrize(
    "data", [b"<html>not found</html>", b"\0" * 1000, b"\xff\xd8\xff\xe0" + b"x" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_bytes_that_are_not_an_image_are_bad(data: bytes) -> None:
    with pytest.raises(BadImage) as error:
        decode(data, size=16, max_pixels=LIMIT)
    assert error.value.reason == "undecodable"
    assert "BytesIO" not in str(error.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG with a huge size in its header and almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 9_000), (1_000_000, 1_000)])
def test_a_decompression_bomb_is_found_before_decoding(width: int, height: int) -> None:
    with pytest.raises(BadImage) as error:
        decode(bomb(width, height), size=16, max_pixels=LIMIT)
    assert error.value.reason == "too_large"
    assert f"{width} x {height}" in str(error.value)


def test_the_limit_of_the_call_applies() -> None:
    data = encode(scene(30, 30))
    assert decode(data, size=8, max_pixels=900).shape == (8, 8, 3)
    with pytest.raises(BadImage, match="expected at most 899"):
        decode(data, size=8, max_pixels=899)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_give_an_image_or_the_error_bad_image(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encode(scene(24, 18), kind), dtype=np.uint8)
    num_bad = 0
    for _ in range(300):
        data = whole.copy()
        where = rng.integers(0, min(len(data), 200 if rng.random() < 0.7 else len(data)), rng.integers(1, 8))
        data[where] = rng.integers(0, 256, len(where))
        try:
            assert decode(data.tobytes(), size=8, max_pixels=1_000_000).shape == (8, 8, 3)
        except BadImage:
            num_bad += 1
    assert num_bad > 0


def test_the_evaluation_box_lies_within_the_image() -> None:
    for width in range(1, 60, 7):
        for height in range(1, 400, 13):
            crop = evaluation_crop(width, height, size=32)
            assert crop.left >= 0
            assert crop.top >= 0
            assert crop.left + crop.width <= width + 1e-6
            assert crop.top + crop.height <= height + 1e-6


def photo(number: int, width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:
    """A drawing of the demo pool as JPEG, enlarged, with a gradient and noise."""
    drawing = pl.read_parquet(DEMO_TABLE, columns=["image"], n_rows=number + 1)["image"][number]
    enlarged = Image.open(io.BytesIO(drawing)).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(number).normal(0, 12, (height, width, 3))
    pixels = np.asarray(enlarged) * 0.8 + np.linspace(0, 50, width)[None, :, None] + noise
    mixed = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return encode(mixed.convert(mode), "JPEG", quality=90, **options)


def draft_and_full(data: bytes, size: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    draft = decode(data, size=size, max_pixels=LIMIT, draft=True, **options)
    return draft.astype(int), decode(data, size=size, max_pixels=LIMIT, **options).astype(int)


@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (1023, 771), (1025, 1537)])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ],
    ids=["plain", "progressive", "444", "grey", "cmyk", "rotated"],
)
def test_a_draft_is_close_to_full_decoding(width: int, height: int, kind: dict[str, Any]) -> None:
    crop = partial(random_resized_crop, scale=(0.9, 1.0), ratio=(0.75, 4 / 3), horizontal_flip=True, seed=0, epoch=0)
    for number, size in enumerate((48, 64, 112)):
        data = photo(number, width, height, **kind)
        draft, full = draft_and_full(data, size, crop=partial(crop, ordinal=number))
        assert draft.shape == (size, size, 3)
        assert not np.array_equal(draft, full)
        # measured: a mean of at most 0.58 and a maximum of 4; a box that is two pixels off gives a maximum of 6 to 17.
        # At the border the maximum is 11, because the encoder fills up the last block
        assert np.abs(draft - full).mean() < 0.7
        assert np.abs(draft - full)[1:-1, 1:-1].max() <= 5
        assert np.abs(draft - full).max() <= 12


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_draft_is_used_if_the_box_keeps_enough_pixels(scale: int) -> None:
    size = 32
    enough = scale * DRAFT_MARGIN * size
    data = photo(0, 640, 600)

    for height, used in ((enough - 1, scale // 2), (enough, scale)):
        box = Crop(left=3, top=5, width=enough + 20, height=height)
        draft = decode(data, size=size, crop=lambda *_, box=box: box, max_pixels=LIMIT, draft=True)
        assert np.array_equal(draft, at_scale(data, used, box, size))


def at_scale(data: bytes, scale: int, box: Crop, size: int) -> np.ndarray:
    """The box of a 640 x 600 JPEG that Pillow's decoder reduces to 1/`scale`."""
    image = Image.open(io.BytesIO(data))
    image.draft(None, (640 // scale, 600 // scale))
    assert image.size == (640 // scale, 600 // scale)
    corners = [corner / scale for corner in (box.left, box.top, box.left + box.width, box.top + box.height)]
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(corners)))  # type: ignore[arg-type]


def test_a_draft_of_the_evaluation_box_shows_the_same_part() -> None:
    draft, full = draft_and_full(photo(3, 900, 1333), 64)
    assert 0 < np.abs(draft - full).mean() < 0.5


@pytest.mark.parametrize(
    ("kind", "width", "height"), [("PNG", 600, 500), ("WEBP", 600, 500), ("JPEG", 255, 900), ("JPEG", 60, 50)]
)
def test_without_a_possible_draft_the_pixels_are_equal(kind: str, width: int, height: int) -> None:
    data = encode(scene(width, height), kind)
    crop = partial(random_resized_crop, scale=(0.5, 1.0), ratio=(0.75, 4 / 3), seed=0, epoch=0, ordinal=1)
    assert np.array_equal(*draft_and_full(data, 64, crop=crop))
    assert np.array_equal(*draft_and_full(data, 64))


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_bad_in_a_draft_too(fraction: float, progressive: bool) -> None:
    data = encode(scene(800, 600), "JPEG", progressive=progressive)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * fraction)], size=32, max_pixels=LIMIT, draft=True)
