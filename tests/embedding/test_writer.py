"""The writer of an embedding alone: writes overlap, their bytes are bounded, and none is lost."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import ray
from fsspec.implementations.memory import MemoryFileSystem

from orchestrator.embedding import writer
from orchestrator.embedding.vectors import Embedding, clip_scores
from orchestrator.embedding.writer import Writer
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import done_summaries
from orchestrator.storage.retry import StoreError

DIM, ROWS, NUM_PARTS = 8, 5, 24
PART_BYTES = 2 * ROWS * DIM * 2
FILES = ("clip_score.npy", "image.npy", "text.npy")
PAUSE, PATIENCE = 0.005, 60.0


class SlowStore(MemoryFileSystem):
    """A store where every write takes a while; it records the writes, and fails those in `refused`."""

    protocol = "slow"
    refused = ""
    lock = threading.Lock()
    puts: Counter[str]
    most_puts, most_parts = 0, 0
    # before its mark is there, a part's files are
    whole_at_mark: dict[str, bool]
    may_go: threading.Event

    @classmethod
    def clear(cls) -> None:
        """Forgets what it saw."""
        cls.refused, cls.most_puts, cls.most_parts = "", 0, 0
        cls.puts, cls.whole_at_mark, cls.may_go = Counter(), {}, threading.Event()
        cls.may_go.set()

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        """A put."""
        kind = type(self)
        place, _, ending = path.rpartition("/")[2].partition(".")
        with kind.lock:
            kind.puts[place] += 1
            kind.most_puts = max(kind.most_puts, kind.puts.total())
            kind.most_parts = max(kind.most_parts, len(+kind.puts))
        try:
            assert kind.may_go.wait(PATIENCE)
            time.sleep(PAUSE)
            if kind.refused and kind.refused in path:
                raise PermissionError(13, "not allowed", path)
            if ending.startswith("json"):
                folder = path.rpartition("/")[0]
                kind.whole_at_mark[place] = all(self.exists(f"{folder}/{place}.{name}") for name in FILES)
            super().pipe_file(path, value, **options)
        finally:
            with kind.lock:
                kind.puts[place] -= 1


@pytest.fixture
def artifact() -> Iterator[Artifact]:
    fsspec.register_implementation("slow", SlowStore, clobber=True)
    SlowStore.clear()
    yield Artifact.of(f"slow://{uuid.uuid4().hex}", "embedding", version=1, towers=["image", "text"])
    SlowStore.may_go.set()


def vectors(part: int, tower: str) -> np.ndarray:
    return np.random.default_rng([part, len(tower)]).normal(size=(ROWS, DIM)).astype(np.float16)


def cosines(part: int) -> np.ndarray:
    return clip_scores(vectors(part, "image"), vectors(part, "text"))


def batches(parts: list[int], rows_per_batch: int, order: random.Random | None = None) -> Iterator[dict[str, Any]]:
    """All rows of the parts, across their borders; shuffled, the last batch need not be of the last part."""
    places = [(part, row) for part in parts for row in range(ROWS)]
    if order:
        order.shuffle(places)
    for start in range(0, len(places), rows_per_batch):
        part, row = np.array(places[start : start + rows_per_batch]).T
        towers = {
            tower: np.stack([vectors(p, tower)[r] for p, r in zip(part, row, strict=True)])
            for tower in ("image", "text")
        }
        texts = {name: np.full(len(part), "", object) for name in ("key", "problem")}
        scores = np.stack([cosines(p)[r] for p, r in zip(part, row, strict=True)])
        yield {"part": part, "row": row, "expected": np.full(len(part), ROWS), **texts, **towers, "clip_score": scores}


def writer_of(artifact: Artifact, parts: list[int]) -> Writer:
    return Writer(artifact, (ROWS,) * NUM_PARTS, {"image": DIM, "text": DIM}, parts)


def check(artifact: Artifact, parts: list[int]) -> None:
    done = done_summaries(artifact)
    assert sorted(done) == sorted(parts)
    assert all(summary["rows"] == summary["image"] == summary["text"] == ROWS for summary in done.values())
    assert SlowStore.whole_at_mark == {f"{part:06d}": True for part in parts}
    for part in parts:
        assert (Embedding(artifact).image(part) == vectors(part, "image")).all()
        assert (Embedding(artifact).text(part) == vectors(part, "text")).all()
        assert (Embedding(artifact).clip_score(part) == cosines(part)).all()


@pytest.mark.parametrize("order", [None, random.Random(3)], ids=["in order", "shuffled"])
def test_parts_are_written_at_once_and_all_there_after_the_last_rows(
    artifact: Artifact, order: random.Random | None
) -> None:
    parts = list(range(NUM_PARTS - 4))
    write = writer_of(artifact, parts)
    counted = sum(write(batch)["rows"][0] for batch in batches(parts, 7, order))
    assert counted == ROWS * len(parts)
    check(artifact, parts)
    assert 1 < SlowStore.most_puts <= writer.NUM_THREADS


def test_collecting_continues_while_the_store_is_blocked(artifact: Artifact) -> None:
    SlowStore.may_go.clear()
    parts = list(range(NUM_PARTS))
    write = writer_of(artifact, parts)
    *first, last = batches(parts, ROWS)
    for batch in first:
        write(batch)
    end = time.monotonic() + PATIENCE
    while SlowStore.most_puts < writer.NUM_THREADS and time.monotonic() < end:
        time.sleep(PAUSE)
    assert done_summaries(artifact) == {}
    SlowStore.may_go.set()
    write(last)
    check(artifact, parts)
    assert SlowStore.most_puts == writer.NUM_THREADS


def test_bytes_that_wait_for_the_store_are_bounded(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_PENDING_BYTES", 3 * PART_BYTES + 1)
    parts, seen = list(range(NUM_PARTS)), []
    write = writer_of(artifact, parts)
    for batch in batches(parts, ROWS):
        write(batch)
        seen.append(sum(write.pending.values()))
    check(artifact, parts)
    assert max(seen) == 3 * PART_BYTES
    assert 1 < SlowStore.most_parts <= 3
    monkeypatch.setattr(writer, "MAX_PENDING_BYTES", PART_BYTES - 1)
    SlowStore.clear()
    again = writer_of(artifact, parts)
    for batch in batches(parts, 12):
        again(batch)
    assert SlowStore.most_parts == 1, "a part that is larger than the bound goes alone"
    check(artifact, parts)


@pytest.mark.parametrize("broken", [1, NUM_PARTS - 1])
def test_a_failed_write_raises_at_every_later_call(artifact: Artifact, broken: int) -> None:
    SlowStore.refused = f"{broken:06d}.text"
    parts = list(range(NUM_PARTS))
    write = writer_of(artifact, parts)
    with pytest.raises(StoreError, match=f"not allowed to write slow://.*{broken:06d}.text.npy"):
        list(map(write, batches(parts, ROWS)))
    with pytest.raises(StoreError, match="not allowed"):
        write(next(batches([0], ROWS)))
    write.threads.shutdown()
    assert broken not in done_summaries(artifact), "no mark without the files"


def test_rows_that_come_twice_count_once(artifact: Artifact) -> None:
    parts = list(range(6))
    write = writer_of(artifact, parts)
    first = list(batches(parts[:5], ROWS))
    for batch in [*first, *first]:
        write(batch)
    assert write.left == {5}
    for batch in batches(parts[5:], ROWS):
        write(batch)
    check(artifact, parts)


def test_a_restarted_writer_waits_at_every_call(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_has_restarted", lambda: True)
    write = writer_of(artifact, list(range(NUM_PARTS)))
    # the first parts were another process's, which has lost the beginning of this one
    late = list(batches(list(range(10, 20)), 2 * ROWS, None))
    late[0] = {name: column[2:] for name, column in late[0].items()}
    for number, batch in enumerate(late):
        write(batch)
        assert sorted(done_summaries(artifact)) == list(range(11, 12 + 2 * number))
    check(artifact, list(range(11, 20)))


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_knows_that_it_restarted(tmp_path: Path) -> None:
    class Actor:
        def __init__(self) -> None:
            self.told = writer._has_restarted()

        def ask(self) -> bool:
            return self.told

        def die(self) -> None:
            # once, though it is asked again
            if not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os._exit(1)

    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Actor).remote()
    assert ray.get(actor.ask.remote()) is False
    ray.get(actor.die.remote())
    assert ray.get(actor.ask.remote()) is True
    assert writer._has_restarted() is False
