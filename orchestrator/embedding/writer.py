"""The one actor that gathers rows of vectors into parts and writes each part whole.

It holds the parts that have begun to come and are not whole yet; reading keeps its order, so they are few. If it is
started anew, the rows it held are lost: those parts have no summary and are embedded again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from orchestrator import store
from orchestrator.artifacts import Artifact
from orchestrator.config.embedding import Tower
from orchestrator.embedding.pool import Rows
from orchestrator.embedding.vectors import Vectors, part_result
from orchestrator.parts import part_path

EXAMPLES_PER_REASON = 3


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
    """Gathers and writes; `rows_per_part` are the catalog's."""

    def __init__(self, artifact: Artifact, rows_per_part: tuple[int, ...], dims: Mapping[Tower, int]):
        self.artifact, self.rows_per_part, self.dims = artifact, rows_per_part, dims
        self.open: dict[int, _OpenPart] = {}

    def __call__(self, batch: Rows) -> Rows:
        """`rows` that came, and the summaries of the parts that became whole by them, as JSON."""
        written = []
        for index in np.unique(batch["part"]).tolist():
            rows = {name: column[batch["part"] == index] for name, column in batch.items()}
            part = self.open.setdefault(index, self._begin(index))
            part.take(rows)
            if part.seen.sum() == rows["expected"][0]:
                written.append(self._write(index, self.open.pop(index)))
        return {"rows": [int((batch["row"] >= 0).sum())], "summaries": [json.dumps(written)]}

    def _begin(self, index: int) -> _OpenPart:
        num_rows = self.rows_per_part[index]
        vectors = {tower: np.zeros((num_rows, dim), np.float16) for tower, dim in self.dims.items()}
        return _OpenPart(vectors, np.zeros(num_rows, bool))

    def _write(self, index: int, part: _OpenPart) -> dict:
        result = part_result(part.vectors, problems=part.problems, examples=part.examples)
        for ending, data in result.files.items():
            store.write(part_path(self.artifact, index, ending), data)
        summary = {"index": index, **result.summary}
        store.write_json(part_path(self.artifact, index, "json"), summary)
        return summary
