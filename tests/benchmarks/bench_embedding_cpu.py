"""Measure the CPU time around an encoder's forward pass: microseconds per pair in each process of the embedding stage.

A decoding task decodes, tokenises and makes a block; the process of the encoder gets tensors from it. The forward pass
is replaced by a constant, so what is left is what keeps a GPU waiting. The rows "before" tokenise in the process of the
encoder, as the stage did before. Bare loops give the lower bounds. No Ray process starts; blocks are made and read by
Ray Data's own functions.

    python tests/benchmarks/bench_embedding_cpu.py --pairs 2048

With `--draft` it compares drafted decoding (`embedding.NAME.draft_decoding`) with full decoding instead: the time, and
the cosines of the vectors of EfficientNet-Lite0 at 96 pixels for crops of scikit-learn's two photographs (about 410
pixels, so that a draft is possible). bf16 and another round of JPEG give the scale.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from open_clip import SimpleTokenizer
from PIL import Image
from ray.data.block import BlockAccessor

from orchestrator.clip.encoders import Encoder, efficientnet_lite0
from orchestrator.clip.tokens import captions_of
from orchestrator.data.image_decode import ImageDecoder, decode
from orchestrator.embedding import pool as pools
from orchestrator.embedding.actor import Embedder
from orchestrator.embedding.pool import Pool, Rows, decode_rows
from orchestrator.engine.metering import Meter

DEMO_TABLE = Path(__file__).parents[2] / "orchestrator" / "demo" / "pool" / "train.parquet"
SIDE, SIZE, DIM, BATCH = 256, 224, 512, 256


def pairs(num: int) -> pa.Table:
    """Return pairs as reading tasks send them: JPEGs of 256 pixels and their captions."""
    table = pl.read_parquet(DEMO_TABLE, columns=["image", "caption"])
    images, captions = [], []
    for number in range(num):
        data, caption = table.row(number % len(table))
        out = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE)).save(out, "JPEG", quality=95)
        images.append(out.getvalue())
        captions.append(caption or "")
    return pa.table(
        {
            "part": pa.array(np.zeros(num, np.int32)),
            "row": pa.array(np.arange(num)),
            "expected": pa.array(np.full(num, num)),
            "key": pa.array([str(number) for number in range(num)]),
            "caption": pa.array(captions, pa.large_string()),
            "image": pa.array(images, pa.large_binary()),
        }
    )


def microseconds(call: Callable[[], Any], num: int, rounds: int) -> float:
    """Return the CPU time of this process per pair, the least of several rounds."""
    call()
    found = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        found.append((time.process_time() - started) / num * 1e6)
    return min(found)


class Instant:
    """An encoder with a forward pass that takes no time. `tokenizer` is None if it gets tokens."""

    def __init__(self, tokenizer: SimpleTokenizer | None):
        self.tokenizer, self.captions = tokenizer, list[str]()
        self.dims = {"image": DIM, "text": DIM}

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), DIM), DIM**-0.5)

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.tokenizer is not None:
            self.tokenizer(self.captions)
        return torch.full((len(tokens), DIM), DIM**-0.5)


def embedder(encoder: Instant) -> Embedder:
    """Return the stage's actor around an encoder."""
    made = Embedder.__new__(Embedder)
    made.meter, made.device = Meter(), torch.device("cpu")
    made.encoder = encoder  # type: ignore[assignment]
    assert isinstance(made.encoder, (Instant, Encoder))
    return made


def measured(num: int, rounds: int) -> dict[str, float]:
    """Return microseconds per pair by what is done."""
    tokenizer, table = SimpleTokenizer(), pairs(num)
    tokenize = captions_of(tokenizer)
    decoder = ImageDecoder(SIZE, 1.0, "shortest", max_pixels=10**8)
    pool: Any = partial(
        Pool, source=None, parts=(), catalog=None, towers=("image", "text"), decoder=decoder, draft=False
    )
    batches = [table.slice(start, BATCH) for start in range(0, num, BATCH)]
    captions = [batch["caption"].to_pylist() for batch in batches]
    images = table["image"].to_pylist()
    took = partial(microseconds, num=num, rounds=rounds)

    def decoded(own: Any) -> list[Rows]:
        with patch.object(pools, "fetched", lambda one: one):
            return [decode_rows(batch, reference=pool(tokenize=own)) for batch in batches]

    def blocks(rows: list[Rows]) -> list[Any]:
        return [BlockAccessor.batch_to_block(one) for one in rows]

    rows = decoded(tokenize)
    made = blocks(rows)

    def embed(encoder: Instant) -> None:
        actor = embedder(encoder)
        for block, own in zip(made, captions, strict=True):
            encoder.captions = own
            BlockAccessor.batch_to_block(actor(BlockAccessor.for_block(block).to_batch_format("numpy")))

    return {
        "decode, bare loop": took(lambda: [decode(one, size=SIZE, max_pixels=10**8) for one in images]),
        "decoding task, without captions": took(lambda: decoded(None)),
        "decoding task, with tokens": took(lambda: decoded(tokenize)),
        "tokenise, the model's own tokenizer": took(lambda: [tokenizer(own) for own in captions]),
        "tokenise, ours": took(lambda: [tokenize(own) for own in captions]),
        "make blocks": took(lambda: blocks(rows)),
        "process of the encoder, before (tokenises)": took(lambda: embed(Instant(tokenizer))),
        "process of the encoder, now (gets tokens)": took(lambda: embed(Instant(None))),
    }


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Return an image as a JPEG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def drafted(num: int, size: int = 96) -> None:
    """Print a Markdown row for each way to change the pixels or the arithmetic a little."""
    from sklearn.datasets import load_sample_images

    rng, photos = np.random.default_rng(0), load_sample_images().images
    crops = []
    for number in range(num):
        photo, side = photos[number % len(photos)], int(rng.integers(4 * size + 8, 427))
        top, left = (int(rng.integers(0, room - side + 1)) for room in photo.shape[:2])
        crops.append(photo[top : top + side, left : left + side])
    images = [jpeg(crop, 90) for crop in crops]
    encoder = efficientnet_lite0(image_size=size).place(torch.device("cpu"), "fp32")
    half = efficientnet_lite0(image_size=size).place(torch.device("cpu"), "bf16")

    def pixels(encoded: list[bytes], draft: bool) -> torch.Tensor:
        found = [decode(one, size=size, max_pixels=10**8, draft=draft) for one in encoded]
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)

    full = encoder.encode_images(pixels(images, draft=False))
    again = [jpeg(np.asarray(Image.open(io.BytesIO(one))), 75) for one in images]
    for name, vectors in (
        ("drafted", encoder.encode_images(pixels(images, draft=True))),
        ("bf16", half.encode_images(pixels(images, draft=False))),
        ("JPEG again, quality 75", encoder.encode_images(pixels(again, draft=False))),
    ):
        cosines = (full * vectors).sum(dim=1)
        print(f"| {name} | cosine: least {cosines.min():.5f}, median {cosines.median():.5f} |", flush=True)
    slow, fast = (microseconds(lambda d=draft: pixels(images, d), num, 3) for draft in (False, True))
    print(f"| drafted | {fast:,.0f} us instead of {slow:,.0f} us |", flush=True)


def main() -> None:
    """Print a Markdown row for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft", action="store_true", help="compare drafted decoding with full decoding")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.draft:
        return drafted(48)
    for name, value in measured(asked.pairs, asked.rounds).items():
        print(f"| {name} | {value:,.1f} us |", flush=True)


if __name__ == "__main__":
    main()
