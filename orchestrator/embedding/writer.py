"""The one actor that collects rows of vectors into parts and writes each complete part.

It holds the parts of which some rows have come; reading keeps its order, so they are few. Threads write complete parts,
because a write to a bucket takes long even if it is small. The call that completes the last part waits for all writes:
nothing keeps the actor alive after it. If the actor restarts, its rows and unfinished writes are lost; those parts have
no summary and are embedded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import ray
from numpy.typing import NDArray

from orchestrator.config.embedding import Tower
from orchestrator.embedding.pool import Rows
from orchestrator.embedding.vectors import Vectors, part_result
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import write_part

EXAMPLES_PER_REASON = 3
NUM_THREADS = 16
# bytes of vectors that wait for the store; making the files of a part takes as much memory again
MAX_PENDING_BYTES = 2**28


@dataclass(slots=True)
class _OpenPart:
    """An incomplete part: its vectors and, with both towers, their cosines so far; which rows have come; and the bad
    pairs by reason, with examples."""

    vectors: dict[Tower, Vectors]
    scores: NDArray[np.float32] | None
    seen: np.ndarray
    problems: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def take(self, rows: Rows) -> None:
        """Adds rows. A row may come twice, from a task that ran again: it is counted once."""
        fresh = rows["row"] >= 0
        fresh[fresh] = ~self.seen[rows["row"][fresh]]
        places = rows["row"][fresh]
        for tower, values in self.vectors.items():
            values[places] = rows[tower][fresh]
        if self.scores is not None:
            self.scores[places] = rows["clip_score"][fresh]
        self.seen[places] = True
        bad = fresh & (rows["problem"] != "")
        for key, reason in zip(rows["key"][bad], rows["problem"][bad], strict=True):
            self.problems[reason] += 1
            if self.problems[reason] <= EXAMPLES_PER_REASON:
                self.examples.append(f"{key}: {reason}")


class Writer:
    """Collects and writes; `rows_per_part` are those of the catalog, `parts` are the parts to expect."""

    def __init__(
        self, artifact: Artifact, rows_per_part: tuple[int, ...], dims: Mapping[Tower, int], parts: Iterable[int]
    ):
        self.artifact, self.rows_per_part, self.dims = artifact, rows_per_part, dims
        self.open: dict[int, _OpenPart] = {}
        self.left, self.has_restarted = set(parts), _has_restarted()
        self.threads, self.pending = ThreadPoolExecutor(NUM_THREADS), dict[Future[None], int]()

    def __call__(self, batch: Rows) -> Rows:
        """Adds a batch, and returns its number of `rows`. Errors: a failed write of this call or an earlier one raises
        here, and at every later call."""
        self._wait(MAX_PENDING_BYTES)
        for index in np.unique(batch["part"]).tolist():
            rows = {name: column[batch["part"] == index] for name, column in batch.items()}
            if index not in self.open:
                self.open[index] = self._begin(index)
            part = self.open[index]
            part.take(rows)
            if part.seen.sum() == rows["expected"][0]:
                self._write(index, self.open.pop(index))
        if not self.left or self.has_restarted:
            # after a restart any call may be the last one: which parts were complete before is not known
            self._wait(0)
        return {"rows": [int((batch["row"] >= 0).sum())]}

    def _begin(self, index: int) -> _OpenPart:
        num_rows = self.rows_per_part[index]
        vectors = {tower: np.zeros((num_rows, dim), np.float16) for tower, dim in self.dims.items()}
        scores = np.full(num_rows, np.nan, np.float32) if len(vectors) == 2 else None
        return _OpenPart(vectors, scores, np.zeros(num_rows, bool))

    def _write(self, index: int, part: _OpenPart) -> None:
        num_bytes = sum(values.nbytes for values in part.vectors.values())
        # a part larger than the bound is written alone
        self._wait(MAX_PENDING_BYTES - num_bytes)
        self.pending[self.threads.submit(_write_part, self.artifact, index, part)] = num_bytes
        self.left.discard(index)

    def _wait(self, max_bytes: int) -> None:
        """Waits until the unfinished writes have at most `max_bytes`."""
        while True:
            for write in [write for write in self.pending if write.done()]:
                # a failed write raises here and stays pending
                write.result()
                del self.pending[write]
            if not self.pending or sum(self.pending.values()) <= max_bytes:
                return
            wait(self.pending, return_when=FIRST_COMPLETED)


def _write_part(artifact: Artifact, index: int, part: _OpenPart) -> None:
    result = part_result(part.vectors, scores=part.scores, problems=part.problems, examples=part.examples)
    # the files have them now: frees memory before the writes
    part.vectors.clear()
    write_part(artifact, index, result)


def _has_restarted() -> bool:
    # Ray restarts an actor after its process or node died, with the same arguments
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return bool(context.get_actor_id() and context.was_current_actor_reconstructed)
