"""Measure decoding on one core: draft decoding against full decoding, and other libraries against Pillow, in turns.

python tests/benchmarks/bench_decode.py --side 1024

The first table is of `decode`, with crop and resize. The second is of the bare decoders that are installed (simplejpeg,
PyTurboJPEG, torchvision, OpenCV), without a resize, with the largest and the mean difference of their pixels."""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import numpy as np
from PIL import Image

from orchestrator.data.image_decode import decode
from orchestrator.training.decoding import torch_resize

MAX_PIXELS = 10**8
Decoder = Callable[[bytes], np.ndarray]
RESIZERS = {"decode to 224 px, Pillow": None, "decode to 224 px, torch's resize": torch_resize}


def main() -> None:
    """Print one Markdown row per target size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="side of the JPEG, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    picture = smooth_picture(asked.side)
    for size in (48, 224):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(asked.rounds):
            for draft, spent in seconds.items():
                started = time.perf_counter()
                decode(picture, size=size, max_pixels=MAX_PIXELS, draft=draft)
                spent.append(time.perf_counter() - started)
        whole, drafted = (statistics.median(seconds[draft]) for draft in (False, True))
        print(f"| {size} px | {1000 * whole:.1f} ms | {1000 * drafted:.1f} ms | {whole / drafted:.1f} |")
    print()
    compare(picture, asked.rounds)


def compare(picture: bytes, rounds: int) -> None:
    """Print one Markdown row for each library: its images/s of CPU time, and its pixels against Pillow's."""
    decoders = {name: made for name, make in LIBRARIES.items() if (made := make()) is not None}
    spent: dict[str, list[float]] = {name: [] for name in [*decoders, *RESIZERS]}
    for _ in range(rounds):
        for name, bare in decoders.items():
            started = time.process_time()
            bare(picture)
            spent[name].append(time.process_time() - started)
        for name, resizer in RESIZERS.items():
            started = time.process_time()
            decode(picture, size=224, max_pixels=MAX_PIXELS, resizer=resizer)
            spent[name].append(time.process_time() - started)
    expected = decoders["Pillow"](picture).astype(int)
    for name, seconds in spent.items():
        difference = np.abs(decoders[name](picture).astype(int) - expected) if name in decoders else np.zeros(1)
        rate = 1 / statistics.median(seconds)
        print(f"| {name} | {rate:.0f} images/s | {difference.max():.0f} | {difference.mean():.2f} |")


def pillow() -> Decoder:
    """Return Pillow's decoder."""
    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def simplejpeg() -> Decoder | None:
    """Return simplejpeg's decoder (libjpeg-turbo) if it is installed."""
    if find_spec("simplejpeg") is None:
        return None
    library = import_module("simplejpeg")
    return lambda data: library.decode_jpeg(data, colorspace="RGB")


def turbojpeg() -> Decoder | None:
    """Return PyTurboJPEG's decoder if it and its shared library are installed."""
    if find_spec("turbojpeg") is None:
        return None
    library = import_module("turbojpeg")
    try:
        decoder = library.TurboJPEG()
    except (RuntimeError, OSError):
        return None
    return lambda data: decoder.decode(data, pixel_format=library.TJPF_RGB)


def torchvision() -> Decoder:
    """Return torchvision's decoder (libjpeg-turbo)."""
    torch, library = import_module("torch"), import_module("torchvision.io")

    def decoded(data: bytes) -> np.ndarray:
        pixels = library.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
        return pixels.permute(1, 2, 0).numpy()

    return decoded


def opencv() -> Decoder | None:
    """Return OpenCV's decoder if it is installed."""
    if find_spec("cv2") is None:
        return None
    library = import_module("cv2")
    library.setNumThreads(1)
    return lambda data: library.imdecode(np.frombuffer(data, np.uint8), library.IMREAD_COLOR_RGB)


LIBRARIES: dict[str, Callable[[], Decoder | None]] = {
    "Pillow": pillow,
    "simplejpeg": simplejpeg,
    "PyTurboJPEG": turbojpeg,
    "torchvision": torchvision,
    "OpenCV": opencv,
}


def smooth_picture(side: int) -> bytes:
    """Return a JPEG of random colours, smooth like a photograph."""
    colours = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
