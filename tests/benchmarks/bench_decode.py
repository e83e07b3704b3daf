"""Measure draft decoding: the time to decode a large JPEG on one core with and without it, in turns.

python tests/benchmarks/bench_decode.py --side 1024
"""

from __future__ import annotations

import argparse
import io
import statistics
import time

import numpy as np
from PIL import Image

from orchestrator.data.image_decode import decode

MAX_PIXELS = 10**8


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


def smooth_picture(side: int) -> bytes:
    """Return a JPEG of random colours, smooth like a photograph."""
    colours = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
