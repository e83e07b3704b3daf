"""The keep list: one bit per pair of the pool, by part, in row order. It is all that training knows of pruning."""

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
    """Return a part's mask as a file of packed bits, with the counts `rows` and `kept` and any others."""
    summary = {"rows": len(mask), "kept": int(mask.sum()), **counts}
    return PartResult({"bits": np.packbits(mask).tobytes()}, summary)


@dataclass(frozen=True)
class KeepList:
    """A complete keep list; a reader loads the bits of its own part only."""

    artifact: Artifact

    def mask(self, index: int, num_rows: int) -> Mask:
        """Return the part's bits, bool [num_rows]. Errors: `StoreError` for a file of another length."""
        uri = part_path(self.artifact, index, "bits")
        packed = np.frombuffer(files.read(uri), np.uint8)
        expected = -(-num_rows // 8)
        # numpy would silently make a mask of too few bits
        if len(packed) != expected:
            raise files.StoreError(
                f"{uri} is damaged: got {len(packed):,} bytes, expected {expected:,} for {num_rows:,} pairs; remove "
                f"{self.artifact.uri} and run the same command again to recompute it"
            )
        return np.unpackbits(packed, count=num_rows).view(np.bool_)

    @property
    def num_pairs(self) -> int:
        """Return the number of pairs kept in the whole pool."""
        return int(self.artifact.totals["kept"])

    @property
    def kept_per_part(self) -> tuple[int, ...]:
        """Return the number of pairs kept in each part, in order."""
        return tuple(part["kept"] for part in self.artifact.parts)
