"""The writer of an embedding, timed by itself."""

from __future__ import annotations

from pathlib import Path

from orchestrator.embedding.vectors import Embedding
from orchestrator.engine.artifact import Artifact
from orchestrator.plan import writing


def test_the_writer_writes_whole_parts(tmp_path: Path) -> None:
    artifact = Artifact.of(str(tmp_path), "embedding", version=1)
    written = writing.Written(dims={"image": 8, "text": 8}, batch_size=3, rows_per_part=10)
    assert writing._seconds_per_row(artifact, written) > 0
    assert [Embedding(artifact).image(part).shape for part in range(writing.NUM_PARTS)] == [(10, 8)] * writing.NUM_PARTS
