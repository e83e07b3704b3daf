"""What the comparison within clusters found: each pair's highest cosine to an earlier pair of its cluster, by bucket as
the comparing tasks wrote it (`Compared`), and by part of the pool (`Similarity`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.catalog import Catalog, PartRows, part_groups
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import part_path
from orchestrator.engine.shuffle import read_slice, read_slices

PAIRS_PER_GROUP = 2**17
MAX_GROUPS = 2048


def pool_groups(catalog: Catalog) -> list[list[PartRows]]:
    """The groups of parts that write and receive vectors together, in the pool's order."""
    return part_groups(catalog, max_groups=MAX_GROUPS, pairs_per_group=PAIRS_PER_GROUP)


class Compared(NamedTuple):
    """The pairs of a bucket, in no order: global ordinals int64 [n], the highest cosine to an earlier pair of the
    cluster float32 [n] (-inf for the first), and the ordinal of that pair int64 [n] (-1 for the first). A cluster lies
    in one bucket."""

    ordinals: NDArray[np.int64]
    similarity: NDArray[np.float32]
    earlier: NDArray[np.int64]


def bucket_parts(compared: Artifact) -> list[list[int]]:
    """For each bucket, the parts of the artifact that its comparison was written to."""
    parts: dict[int, list[int]] = {}
    for part in compared.parts:
        parts.setdefault(part["bucket"], []).append(part["index"])
    return list(parts.values())


def read_compared(compared: Artifact, parts: Sequence[int]) -> Compared:
    """The pairs of a bucket, given its parts."""
    tables = [table for part in parts for table in read_slices(part_path(compared, part, "exchange"))]
    if not tables:
        return Compared(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    table = pa.concat_tables(tables)
    return Compared(*(table[name].to_numpy() for name in ("ordinal", "similarity", "earlier")))


@dataclass(frozen=True)
class Similarity:
    """The result of the comparison, by part."""

    artifact: Artifact
    catalog: Catalog

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        # the file of each part's group, and the part's slice in it
        groups = pool_groups(self.catalog)
        return {part.index: (g, position) for g, group in enumerate(groups) for position, part in enumerate(group)}

    def of_part(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """For the part's pairs that reached the step and have an embedding, in row order: the highest cosine to an
        earlier pair of the cluster, float32 [n] (-inf for the first), and the global ordinal of that pair, int64 [n]
        (-1 for the first)."""
        group, position = self._places[index]
        table = read_slice(part_path(self.artifact, group, "exchange"), position)
        if table is None:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        return table["similarity"].to_numpy(), table["earlier"].to_numpy()
