"""An embedding artifact: unit vectors of the whole pool, by part, in row order, from an encoder or from files.

A part has `NNNNNN.image.npy` and/or `NNNNNN.text.npy`, float16 [rows, dim], with an all-zero row for a pair without a
vector. With both towers it also has `NNNNNN.clip_score.npy`, float32 [rows]: the cosine of the two vectors before they
were rounded to float16, NaN where one is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.embedding import Tower
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import open_rows, read_npy
from orchestrator.engine.parts import PartResult, Summary, part_path, sums
from orchestrator.storage.npy import to_npy

BOTH_VERSION = 2
"""The version of an embedding with both towers. Version 1 had the products of the rounded vectors as CLIP scores."""
MAX_EXAMPLES = 20
CHUNK_ROWS = 16_384

Vectors = NDArray[np.float16]


@dataclass(frozen=True)
class Embedding:
    """A complete embedding; readers load only the parts that they need."""

    artifact: Artifact

    def image(self, index: int) -> Vectors:
        """A part's image vectors, float16 [rows, dim], unit norm or all zero."""
        return self._read(index, "image")

    def image_rows(self, index: int, rows: NDArray[np.int64]) -> Vectors:
        """Some rows of a part's image vectors, float16 [n, dim], without reading the others."""
        return open_rows(part_path(self.artifact, index, "image.npy")).take(rows)

    def text(self, index: int) -> Vectors:
        """A part's text vectors, float16 [rows, dim], unit norm or all zero."""
        return self._read(index, "text")

    def clip_score(self, index: int) -> NDArray[np.float32]:
        """A part's cosines of image and caption, float32 [rows], NaN where one has no vector."""
        return self._read(index, "clip_score")

    def has(self, tower: Tower) -> bool:
        """Whether the embedding has vectors of this tower; known before anything is computed."""
        return tower in self.artifact.made_from["towers"]

    def dim(self, tower: Tower) -> int:
        """The length of the vectors of a tower."""
        return int(self.artifact.totals[f"{tower}_dim"])

    def _read(self, index: int, name: str) -> NDArray[Any]:
        return read_npy(part_path(self.artifact, index, f"{name}.npy"))


def is_present(vectors: Vectors) -> NDArray[np.bool_]:
    """Which rows are vectors: not all zero, bool [n]."""
    # comparing bits takes a ninth of the time of float16; a missing vector consists of positive zeros
    return np.logical_or.reduce(vectors.view(np.uint16), axis=1)


def unit_vectors(values: NDArray[np.floating]) -> Vectors:
    """The rows scaled to norm 1, float16 [n, dim]; all zero for a row that is zero or not finite."""
    return unit_rows(values).astype(np.float16)


def unit_rows(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """The rows scaled to norm 1, float32 [n, dim]; all zero for a row that is zero or not finite."""
    wide = values.astype(np.float32)
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0)
    usable = np.isfinite(largest) & (largest > 0)
    # divided by the largest number first: squares of very large or small numbers leave the range of float32
    scaled = np.divide(wide, largest, where=usable, out=np.zeros_like(wide))
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.divide(scaled, norms, where=usable, out=np.zeros_like(wide))


def clip_scores(image: NDArray[np.floating], text: NDArray[np.floating]) -> NDArray[np.float32]:
    """The cosines of corresponding rows, float32 [n]; NaN where one row is all zero.

    Rows are scaled to norm 1 in float32 first: the norm of a vector rounded to float16 is 1 to 3 digits only."""
    scores = np.full(len(image), np.nan, np.float32)
    for start in range(0, len(image), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        # in chunks: a part may have a million rows, and float32 copies of both are twice the size of the vectors
        left, right = unit_rows(image[rows]), unit_rows(text[rows])
        both = left.any(axis=1) & right.any(axis=1)
        scores[rows] = np.where(both, np.einsum("nd,nd->n", left, right), np.nan)
    return scores


def part_result(
    vectors: Mapping[Tower, Vectors],
    *,
    scores: NDArray[np.float32] | None = None,
    problems: Mapping[str, int],
    examples: Sequence[str],
    **counts: int,
) -> PartResult:
    """The files and the summary of a part, given the vectors of its towers and, with both, their cosines; `problems`
    counts bad pairs by reason."""
    written = {f"{tower}.npy": to_npy(values) for tower, values in vectors.items()}
    assert (len(vectors) == 2) == (scores is not None)
    if scores is not None:
        written["clip_score.npy"] = to_npy(scores)
    valid: dict[str, int] = {tower: int(is_present(values).sum()) for tower, values in vectors.items()}
    rows = len(next(iter(vectors.values())))
    bad = {"problems": dict(problems), "examples": list(examples)[:MAX_EXAMPLES]}
    return PartResult(written, {"rows": rows, **valid, **bad, **counts})


def embedding_totals(summaries: Sequence[Summary], dims: Mapping[Tower, int]) -> dict[str, Any]:
    """The sums over all parts, a few examples of bad pairs, and the length of the vectors of each tower."""
    examples = [example for summary in summaries for example in summary["examples"]]
    lengths = {f"{tower}_dim": dim for tower, dim in dims.items()}
    return {**sums(summaries), "examples": examples[:MAX_EXAMPLES], **lengths}
