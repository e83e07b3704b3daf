"""The keep list: one bit for each pair of the pool, by part, in row order. The only door between pruning and
training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.parts import PartResult, part_path
from orchestrator.storage import files

Mask = NDArray[np.bool_]


def pack(mask: Mask, **counts: Any) -> PartResult:
    """A part's mask as its file of packed bits, with the counts `rows` and `kept` and what else is told of it."""
    summary = {"rows": len(mask), "kept": int(mask.sum()), **counts}
    return PartResult({"bits": np.packbits(mask).tobytes()}, summary)


@dataclass(frozen=True)
class KeepList:
    """A complete keep list; readers load their own part's bits only."""

    artifact: Artifact

    def mask(self, index: int, num_rows: int) -> Mask:
        """The part's bits, bool [num_rows]. Errors: `StoreError` for a file of another length."""
        uri = part_path(self.artifact, index, "bits")
        packed = np.frombuffer(files.read(uri), np.uint8)
        expected = -(-num_rows // 8)
        # of too few numpy would make a mask all the same
        if len(packed) != expected:
            raise files.StoreError(
                f"{uri} is damaged: got {len(packed):,} bytes, expected {expected:,} for {num_rows:,} pairs; remove "
                f"{self.artifact.uri}, and the same command computes it anew"
            )
        return np.unpackbits(packed, count=num_rows).view(np.bool_)

    @property
    def num_pairs(self) -> int:
        """Pairs kept in the whole pool."""
        return int(self.artifact.totals["kept"])

    @property
    def kept_per_part(self) -> tuple[int, ...]:
        """Pairs kept in each part, in order."""
        return tuple(part["kept"] for part in self.artifact.parts)
