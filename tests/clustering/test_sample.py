"""The share of a part in the sample, read row by row or as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.clustering import sample
from orchestrator.data.catalog import PartRows
from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import PartResult, part_path
from orchestrator.storage import files
from orchestrator.storage.npy import to_npy

NUM_ROWS = 3000


class Everyone:
    """A keep list of all pairs."""

    def mask(self, index: int, num_rows: int) -> np.ndarray:
        return np.ones(num_rows, bool)


def test_few_vectors_are_read_one_by_one_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = Embedding(Artifact.of(str(tmp_path), "embedding", version=1))
    vectors = np.random.default_rng(0).standard_normal((NUM_ROWS, 8)).astype(np.float16)
    vectors[::3] = 0
    files.write(part_path(embedding.artifact, 0, "image.npy"), to_npy(vectors))

    def drawn(share: float) -> PartResult:
        work = sample.SampleGroup(embedding, Everyone(), share, 5)  # type: ignore[arg-type]
        return work([PartRows(0, NUM_ROWS, 0)])

    shares = [0.0, 0.01, 0.5, 1.0]
    alone = [drawn(share) for share in shares]
    monkeypatch.setattr(sample, "SPARSE", 0)
    assert [drawn(share) for share in shares] == alone
    monkeypatch.undo()
    monkeypatch.delattr(Embedding, "image")
    assert 0 < drawn(0.01).summary["sampled"] < NUM_ROWS / 64
