"""Reading training samples: the same pairs and pixels in every batch, for any number of ranks and any first step.

Bad samples keep a masked slot and are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import ray
import torch

from orchestrator.clip.tokens import ClipCaptions
from orchestrator.config import AugmentationConfig
from orchestrator.training import reader
from orchestrator.training.decoding import NO_CAPTION, Decoding, Rows
from orchestrator.training.device_loader import load_batches
from orchestrator.training.jpegs import JpegDecoder
from orchestrator.training.reader import ReaderInputs, batch_keys, rank_blocks
from orchestrator.training.sample_order import SampleOrder
from tests.support.pools import (
    Pair,
    bomb,
    build_selection,
    config_of,
    make_pairs,
    torn,
    write_parquet_images,
    write_tars,
)
from tests.support.reader_inputs import rows_of

NUM_PAIRS, BATCH, EPOCHS = 90, 16, 2
TORN, SILENT, BLANK, BOMB = 7, 23, 24, 61
pytestmark = pytest.mark.usefixtures("in_order")


@pytest.fixture(autouse=True, scope="module")
def in_order(ray_cluster: str) -> Iterator[None]:
    """Make Ray Data keep the order, as in a training worker."""
    options = ray.data.DataContext.get_current().execution_options
    before, options.preserve_order = options.preserve_order, True
    yield
    options.preserve_order = before


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Good pairs except four: a cut-off image, no caption, a blank caption, and a decompression bomb."""
    pairs = make_pairs(NUM_PAIRS)
    whole = pairs[TORN].image
    assert whole is not None
    pairs[TORN] = Pair(pairs[TORN].key, "a torn image", torn(whole))
    pairs[SILENT] = Pair(pairs[SILENT].key, None, pairs[SILENT].image)
    pairs[BLANK] = Pair(pairs[BLANK].key, " \n", pairs[BLANK].image)
    pairs[BOMB] = Pair(pairs[BOMB].key, "a bomb", bomb())
    return pairs


def inputs_of(source: dict[str, Any], store: Path, *, window: int = 20, seed: int = 3) -> ReaderInputs:
    """Return the inputs for reading all pairs except those that random pruning removes (one in ten)."""
    selection = {"steps": ["random"], "random": {"keep_fraction": 0.9, "seed": 0}}
    found = build_selection(config_of(source, store, selection=selection))
    order = SampleOrder(
        kept_per_part=found.keep.kept_per_part,
        num_samples=EPOCHS * found.keep.num_pairs,
        global_batch_size=BATCH,
        num_lanes=4,
        window=window,
        seed=seed,
    )
    return ReaderInputs(
        source=found.source,
        parts=tuple(found.source.parts()),
        catalog=found.catalog,
        keep=found.keep,
        order=order,
        decoding=Decoding(
            image_size=24,
            seed=seed,
            decode_in="tasks",
            draft_decoding=True,
            max_image_pixels=89_478_485,
            augmentation=AugmentationConfig(scale=(0.4, 1.0), horizontal_flip=True),
            captions=ClipCaptions(12),
        ),
    )


@pytest.fixture(scope="module")
def inputs(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> ReaderInputs:
    folder = tmp_path_factory.mktemp("inputs")
    return inputs_of(
        {"format": "webdataset", "uri": write_tars(folder / "tars", pairs, num_shards=3)}, folder / "store"
    )


def read(inputs: ReaderInputs, *, rank: int = 0, num_ranks: int = 1, first_step: int = 0) -> list[Rows]:
    blocks = rank_blocks(inputs, rank=rank, num_ranks=num_ranks, first_step=first_step)
    return rows_of(blocks, inputs.order.slots(num_ranks), inputs.decoding.image_size)


@pytest.fixture(scope="module")
def alone(inputs: ReaderInputs) -> list[Rows]:
    """Every batch, read by a single rank."""
    return read(inputs)


def same(ours: Rows, theirs: Rows) -> bool:
    return all(np.array_equal(ours[name], theirs[name]) for name in ("key", "image", "tokens", "valid", "problem"))


def by_key(batches: list[Rows]) -> dict[str, tuple[bytes, bytes, bool]]:
    """Return pixels, tokens and validity by key and pixels: at an epoch border, a pair may be in a batch twice."""
    return {
        f"{key}-{image.tobytes().hex()[:40]}": (image.tobytes(), tokens.tobytes(), bool(valid))
        for rows in batches
        for key, image, tokens, valid in zip(rows["key"], rows["image"], rows["tokens"], rows["valid"], strict=True)
    }


def test_the_batches_follow_the_sample_order(inputs: ReaderInputs, alone: list[Rows]) -> None:
    order = inputs.order
    assert len(alone) == order.num_steps == -(-EPOCHS * 81 // BATCH)
    kept = [np.flatnonzero(inputs.keep.mask(part, rows)) for part, rows in enumerate(inputs.catalog.rows_per_part)]
    keys = [inputs.catalog.table(part, ("key",))["key"].to_pylist() for part in range(len(kept))]
    for step, rows in enumerate(alone):
        pairs = order.batch(step)
        expected = [
            keys[part][kept[part][ordinal]] for part, ordinal in zip(pairs.part, pairs.kept_ordinal, strict=True)
        ]
        assert sorted(rows["key"].tolist()) == sorted(expected)
    assert [len(rows["key"]) for rows in alone[:-1]] == [BATCH] * (order.num_steps - 1)


def test_the_keys_of_a_batch_are_known_without_reading_it(inputs: ReaderInputs, alone: list[Rows]) -> None:
    for step in (0, 3, len(alone) - 1):
        assert sorted(batch_keys(inputs, step)) == sorted(alone[step]["key"].tolist())


def test_the_ordinal_of_a_pair_is_its_position_in_the_pool(inputs: ReaderInputs, alone: list[Rows]) -> None:
    keys = [
        key
        for part, _ in enumerate(inputs.catalog.rows_per_part)
        for key in inputs.catalog.table(part, ("key",))["key"].to_pylist()
    ]
    for epoch, rows in [(0, alone[0]), (EPOCHS - 1, alone[-1])]:
        assert rows["epoch"].tolist() == [epoch] * len(rows["key"])
        assert [keys[ordinal] for ordinal in rows["ordinal"]] == rows["key"].tolist()


def test_tokens_are_those_of_the_captions(inputs: ReaderInputs, alone: list[Rows], pairs: list[Pair]) -> None:
    for rows in alone:
        captions = [pairs[int(key)].caption or "" for key in rows["key"]]
        assert np.array_equal(rows["tokens"], open_clip.tokenize(captions, context_length=12))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_loader_gives_the_read_rows_as_batches(inputs: ReaderInputs, num_ranks: int) -> None:
    place, slots = {"rank": num_ranks - 1, "num_ranks": num_ranks, "first_step": 3}, inputs.order.slots(num_ranks)
    loaded = load_batches(rank_blocks(inputs, **place), inputs.decoding, slots=slots, device=torch.device("cpu"))
    expected = read(inputs, **place)
    for rows, (_, share) in zip(expected, zip(expected, loaded, strict=False), strict=True):
        num = len(rows["key"])
        assert share.rows["key"].tolist() == rows["key"].tolist()
        assert share.rows["problem"].tolist() == rows["problem"].tolist()
        assert np.array_equal(share.batch.images[:num].permute(0, 2, 3, 1).numpy(), rows["image"])
        assert np.array_equal(share.batch.texts[:num].numpy(), rows["tokens"])
        assert share.batch.valid.tolist() == rows["valid"].tolist() + [False] * (slots - num)
        assert share.batch.keys is not None
        assert share.batch.keys[:num].tolist() == ((rows["epoch"] << 40) | rows["ordinal"]).tolist()


def test_each_kept_pair_comes_once_per_epoch(alone: list[Rows]) -> None:
    keys = [key for rows in alone for key in rows["key"]]
    assert len(keys) == EPOCHS * 81
    assert all(keys.count(key) == EPOCHS for key in set(keys))


def test_two_ranks_share_the_batches_of_one_rank(inputs: ReaderInputs, alone: list[Rows]) -> None:
    ranks = [read(inputs, rank=rank, num_ranks=2) for rank in range(2)]
    assert all(len(rows["key"]) == BATCH // 2 for rank in ranks for rows in rank[:-1])
    for step, whole in enumerate(alone):
        shares = [rank[step] for rank in ranks if step < len(rank)]
        together = [key for rows in shares for key in rows["key"]]
        assert sorted(together) == sorted(whole["key"].tolist()), step
        # pixels, tokens and masks do not depend on the rank
        assert by_key(shares) == by_key([whole])


def test_a_dataset_starts_before_the_one_before_it_ends(
    inputs: ReaderInputs, alone: list[Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    # one window per dataset
    monkeypatch.setattr(reader, "SEGMENT_ITEMS", 1)
    assert all(same(ours, theirs) for ours, theirs in zip(read(inputs), alone, strict=True))


@pytest.mark.parametrize("first_step", [1, 5, 6, 10])
def test_resuming_gives_exactly_the_next_batches(inputs: ReaderInputs, alone: list[Rows], first_step: int) -> None:
    resumed = read(inputs, first_step=first_step)
    assert len(resumed) == len(alone) - first_step
    assert all(same(ours, theirs) for ours, theirs in zip(resumed, alone[first_step:], strict=True))


def test_resuming_works_for_one_of_two_ranks(inputs: ReaderInputs) -> None:
    whole, resumed = (read(inputs, rank=1, num_ranks=2, first_step=step) for step in (0, 4))
    assert all(same(ours, theirs) for ours, theirs in zip(resumed, whole[4:], strict=True))


def test_bad_samples_keep_a_masked_slot_and_have_a_problem(inputs: ReaderInputs, alone: list[Rows]) -> None:
    found: dict[str, set[str]] = {}
    for rows in alone:
        for key, valid, problem, image in zip(rows["key"], rows["valid"], rows["problem"], rows["image"], strict=True):
            assert valid == (problem == "")
            if not valid:
                assert not image.any()
                found.setdefault(key, set()).add(problem)
    kept = {key for rows in alone for key in rows["key"]}
    expected = {f"{number:09d}" for number in (TORN, SILENT, BLANK, BOMB)} & kept
    assert len(expected) >= 3
    assert set(found) == expected
    for key, problems in found.items():
        (problem,) = problems
        number = int(key)
        reason = {TORN: "undecodable", SILENT: NO_CAPTION, BLANK: NO_CAPTION, BOMB: "too_large"}[number]
        assert problem.startswith(reason), problem


def test_augmentation_differs_between_epochs(alone: list[Rows]) -> None:
    views: dict[str, list[bytes]] = {}
    for rows in alone:
        for key, image, valid in zip(rows["key"], rows["image"], rows["valid"], strict=True):
            if valid:
                views.setdefault(key, []).append(image.tobytes())
    differ = sum(len(set(seen)) == EPOCHS for seen in views.values())
    assert differ >= 0.95 * len(views)


@pytest.mark.parametrize("kind", ["compressed", "parquet"])
def test_other_formats_of_the_pool_give_the_same_batches(
    pairs: list[Pair],
    alone: list[Rows],
    tmp_path: Path,
    kind: str,
) -> None:
    if kind == "compressed":
        source = {"format": "webdataset", "uri": write_tars(tmp_path / "pool", pairs, num_shards=3, compressed=True)}
    else:
        source = {"format": "parquet", "uri": write_parquet_images(tmp_path / "pool", pairs, num_shards=3)}
    other = read(inputs_of(source, tmp_path / "store"))
    assert len(other) == len(alone)
    assert all(same(ours, theirs) for ours, theirs in zip(other, alone, strict=True))


def test_a_missing_shard_is_an_error_not_a_bad_sample(pairs: list[Pair], tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "pool", pairs, num_shards=3)
    inputs = inputs_of({"format": "webdataset", "uri": uri}, tmp_path / "store")
    (tmp_path / "pool" / "00001.tar").unlink()
    with pytest.raises(Exception, match=r"00001\.tar"):
        read(inputs)


def test_decoding_in_workers_gives_the_same_batches(inputs: ReaderInputs, alone: list[Rows]) -> None:
    size, limit = inputs.decoding.image_size, inputs.decoding.max_image_pixels
    decoder = JpegDecoder(size, limit, torch.device("cpu"))
    encoded = read(replace(inputs, decoding=replace(inputs.decoding, decode_in="workers")))
    assert len(encoded) == len(alone)
    for read_rows, theirs in zip(encoded, alone, strict=True):
        rows, images = decoder(read_rows, read_rows["encoded"], read_rows["box"])
        for name in ("key", "tokens", "valid", "epoch", "ordinal"):
            assert np.array_equal(rows[name], theirs[name]), name
        assert [text.split(":")[0] for text in rows["problem"]] == [text.split(":")[0] for text in theirs["problem"]]
        assert np.abs(images.permute(0, 2, 3, 1).numpy().astype(int) - theirs["image"]).mean() <= 1
