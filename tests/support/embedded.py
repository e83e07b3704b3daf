"""A caption table with vectors brought along, and what the geometry steps make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from orchestrator.clustering.assign import read_assigned
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.role import Role
from tests.support.pools import Selected, build_selection, config_of


def blobs(num_pairs: int, dim: int, num_blobs: int, *, seed: int = 0) -> np.ndarray:
    """Unit vectors around random directions, float32 [n, dim]."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_blobs, dim))
    vectors = centres[rng.integers(0, num_blobs, num_pairs)] + 0.5 * rng.standard_normal((num_pairs, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class EmbeddedPool:
    """A table of captions in `table`, vectors by key in `vectors`; `store` holds what is made of them."""

    table: Path
    vectors: Path
    store: Path

    def select(
        self, steps: Mapping[str, Mapping[str, Any]], *, part_rows: int = 1_000_000, actors: int | None = None
    ) -> Selected:
        """Builds the steps, in order, each by this pool's vectors; parts of `part_rows`."""
        nodes = {name: {"embedding": "mine", **node} if clustered(name, node) else node for name, node in steps.items()}
        return build_selection(
            config_of(
                {"format": "table", "uri": str(self.table), "key_column": "key", "part_rows": part_rows},
                self.store,
                embedding={"mine": {"kind": "columns", "uri": str(self.vectors), "max_missing": 1.0}},
                selection={"steps": list(nodes), **nodes},
                cluster={"scoring_actors": actors},
            )
        )


def clustered(name: str, node: Mapping[str, Any]) -> bool:
    return node.get("method", name) in ("semdedup", "ssp", "dbp", "clip_score")


def write_pool(
    folder: Path, vectors: Sequence[Sequence[float] | None], captions: Sequence[str] | None = None
) -> EmbeddedPool:
    """The pairs in one table; the vectors, `None` left out, in a Parquet file in another order."""
    keys = [f"k{number:06d}" for number in range(len(vectors))]
    (folder / "table").mkdir(parents=True)
    texts = captions or [f"picture {number} of {number % 7}" for number in range(len(vectors))]
    pl.DataFrame({"key": keys, "caption": texts}).write_parquet(folder / "table" / "0.parquet")
    order = np.random.default_rng(3).permutation(
        [number for number, vector in enumerate(vectors) if vector is not None]
    )
    columns = {"key": [keys[i] for i in order], "image_embedding": [np.asarray(vectors[i]).tolist() for i in order]}
    pl.DataFrame(columns).write_parquet(folder / "vectors.parquet")
    return EmbeddedPool(folder / "table", folder / "vectors.parquet", folder / "store")


def artifact(selected: Selected, role: Role, step: str) -> Artifact:
    """The artifact of the stage with that role, of that selection step."""
    return next(stage.artifact for stage in selected.stages if (stage.role, stage.step) == (role, step))


def assigned(selected: Selected, step: str) -> tuple[np.ndarray, np.ndarray]:
    """Cluster and distance of every pair that reached a step, in the pool's order."""
    found = [
        read_assigned(artifact(selected, Role.ASSIGN_CLUSTERS, step), part)
        for part in range(len(selected.catalog.rows_per_part))
    ]
    return np.concatenate([one.cluster for one in found]), np.concatenate([one.distance for one in found])
