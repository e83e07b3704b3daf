"""The one actor that gathers rows of vectors into parts and writes each part whole.

It holds the parts that have begun to come and are not whole yet; reading keeps its order, so they are few. Threads
write those that are whole, as a put to a bucket takes long however small it is; the call that makes the last one whole
waits for all of them, as nothing holds the actor once the rows have come. If it is started anew, the rows it held and
the writes that it had not finished are lost: those parts have no summary and are embedded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import ray

from orchestrator.config.embedding import Tower
from orchestrator.embedding.pool import Rows
from orchestrator.embedding.vectors import Vectors, part_result
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import write_part

EXAMPLES_PER_REASON = 3
NUM_THREADS = 16
# of vectors that wait for the store; while a part's files are made it takes as much again
MAX_PENDING_BYTES = 2**28


@dataclass(slots=True)
class _OpenPart:
    """A part that is coming in: its vectors so far, which rows have come, and what was wrong with some."""

    vectors: dict[Tower, Vectors]
    seen: np.ndarray
    problems: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def take(self, rows: Rows) -> None:
        """Takes in rows; those of a task that was run again may come twice."""
        fresh = rows["row"] >= 0
        fresh[fresh] = ~self.seen[rows["row"][fresh]]
        places = rows["row"][fresh]
        for tower, values in self.vectors.items():
            values[places] = rows[tower][fresh]
        self.seen[places] = True
        bad = fresh & (rows["problem"] != "")
        for key, reason in zip(rows["key"][bad], rows["problem"][bad], strict=True):
            self.problems[reason] += 1
            if self.problems[reason] <= EXAMPLES_PER_REASON:
                self.examples.append(f"{key}: {reason}")


class Writer:
    """Gathers and writes; `rows_per_part` are the catalog's, `parts` those whose rows will come."""

    def __init__(
        self, artifact: Artifact, rows_per_part: tuple[int, ...], dims: Mapping[Tower, int], parts: Iterable[int]
    ):
        self.artifact, self.rows_per_part, self.dims = artifact, rows_per_part, dims
        self.open: dict[int, _OpenPart] = {}
        self.left, self.started_anew = set(parts), _started_anew()
        self.threads, self.pending = ThreadPoolExecutor(NUM_THREADS), dict[Future[None], int]()

    def __call__(self, batch: Rows) -> Rows:
        """`rows` that came. Errors: those of writing, of this call's parts or of earlier ones'; they come again at
        every later call."""
        self._wait(MAX_PENDING_BYTES)
        for index in np.unique(batch["part"]).tolist():
            rows = {name: column[batch["part"] == index] for name, column in batch.items()}
            if index not in self.open:
                self.open[index] = self._begin(index)
            part = self.open[index]
            part.take(rows)
            if part.seen.sum() == rows["expected"][0]:
                self._write(index, self.open.pop(index))
        if not self.left or self.started_anew:
            # any call may be the last one then: what was whole before this process is not known
            self._wait(0)
        return {"rows": [int((batch["row"] >= 0).sum())]}

    def _begin(self, index: int) -> _OpenPart:
        num_rows = self.rows_per_part[index]
        vectors = {tower: np.zeros((num_rows, dim), np.float16) for tower, dim in self.dims.items()}
        return _OpenPart(vectors, np.zeros(num_rows, bool))

    def _write(self, index: int, part: _OpenPart) -> None:
        num_bytes = sum(values.nbytes for values in part.vectors.values())
        # a part that is larger than the bound goes alone
        self._wait(MAX_PENDING_BYTES - num_bytes)
        self.pending[self.threads.submit(_write_part, self.artifact, index, part)] = num_bytes
        self.left.discard(index)

    def _wait(self, max_bytes: int) -> None:
        """Until the writes under way are of at most so many bytes."""
        while True:
            for write in [write for write in self.pending if write.done()]:
                # one that failed stays
                write.result()
                del self.pending[write]
            if not self.pending or sum(self.pending.values()) <= max_bytes:
                return
            wait(self.pending, return_when=FIRST_COMPLETED)


def _write_part(artifact: Artifact, index: int, part: _OpenPart) -> None:
    result = part_result(part.vectors, problems=part.problems, examples=part.examples)
    # the files hold them now
    part.vectors.clear()
    write_part(artifact, index, result)


def _started_anew() -> bool:
    # Ray starts an actor whose process or node died again, with the same arguments
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return bool(context.get_actor_id() and context.was_current_actor_reconstructed)
