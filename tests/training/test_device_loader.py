"""Batches for the training step: the same number of slots on every rank, and keys of the pair and the epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from orchestrator.clip.model import Clip, build
from orchestrator.training.device_loader import decoded_pixels, no_rows, prefetch, to_batch


@pytest.fixture(scope="module")
def clip() -> Clip:
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
        "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
    }
    return build(name=None, config=config, pretrained=None, image_size=None, context_length=None, seed=0)


def rows(num_rows: int) -> dict[str, np.ndarray]:
    return {
        "image": np.arange(num_rows * 16 * 16 * 3, dtype=np.uint8).reshape(num_rows, 16, 16, 3),
        "caption": np.array([f"picture {i}" for i in range(num_rows)], object),
        "key": np.array([f"{i:03d}" for i in range(num_rows)], object),
        "problem": np.array([""] * num_rows, object),
        "valid": np.array([i != 1 for i in range(num_rows)]),
        "epoch": np.full(num_rows, 3),
        "ordinal": np.arange(num_rows) + 1000,
    }


def test_a_full_share_is_not_padded(clip: Clip) -> None:
    batch = to_batch(*decoded_pixels(rows(4)), clip, 4)
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert torch.equal(batch.texts, clip.tokenizer([f"picture {i}" for i in range(4)]))
    assert batch.valid.tolist() == [True, False, True, True]
    assert batch.keys is not None
    assert batch.keys.tolist() == [(3 << 40) + 1000 + i for i in range(4)]


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_short_share_is_padded_with_masked_repeats(clip: Clip, num_rows: int) -> None:
    batch = to_batch(*decoded_pixels(rows(num_rows)), clip, 7)
    whole = to_batch(*decoded_pixels(rows(num_rows)), clip, num_rows)
    assert len(batch.images) == len(batch.texts) == len(batch.valid) == 7
    assert torch.equal(batch.images[:num_rows], whole.images)
    assert not batch.valid[num_rows:].any()
    assert torch.equal(batch.images[num_rows], whole.images[0])


def test_a_share_without_a_pair_is_all_masked(clip: Clip) -> None:
    batch = to_batch(*decoded_pixels(no_rows(16)), clip, 3)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.texts.shape == (3, 12)
    assert not batch.valid.any()


def test_prefetched_items_come_in_order_and_are_made_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            yield i

    found = prefetch(items(), 2)
    assert next(found) == 0
    end = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    assert made == [0, 1, 2, 3], "one yielded, two in the queue, one made"
    assert list(found) == [1, 2, 3, 4]


def test_an_error_in_the_thread_is_raised_where_the_items_are_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise FileNotFoundError("a shard is gone")

    found = prefetch(items(), 2)
    assert next(found) == 1
    with pytest.raises(FileNotFoundError, match="a shard is gone"):
        next(found)
