"""The keep list: one bit for each pair of the pool, by part, in row order. Training sees the result of pruning only
through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import checked, damaged
from orchestrator.engine.parts import PartResult, part_path
from orchestrator.storage import files

Mask = NDArray[np.bool_]


def pack(mask: Mask, **counts: Any) -> PartResult:
    """Return the result of a part: the mask as packed bits, and a summary with `rows`, `kept` and more `counts`."""
    summary = {"rows": len(mask), "kept": int(mask.sum()), **counts}
    return PartResult({"bits": np.packbits(mask).tobytes()}, summary)


@dataclass(frozen=True)
class KeepList:
    """A complete keep list. A reader loads only the bits of its own parts."""

    artifact: Artifact

    def mask(self, index: int, num_rows: int) -> Mask:
        """Return the mask of a part, bool [num_rows]. Errors: `StoreError` if the file has another length."""
        uri = part_path(self.artifact, index, "bits")
        with checked(uri):
            packed = np.frombuffer(files.read(uri), np.uint8)
        expected = -(-num_rows // 8)
        # `unpackbits` would fill missing bits with zeros and not complain
        if len(packed) != expected:
            raise damaged(uri, f"got {len(packed):,} bytes, expected {expected:,} for {num_rows:,} pairs")
        return np.unpackbits(packed, count=num_rows).view(np.bool_)

    @property
    def num_pairs(self) -> int:
        """Number of kept pairs in the whole pool."""
        return int(self.artifact.totals["kept"])

    @property
    def kept_per_part(self) -> tuple[int, ...]:
        """Number of kept pairs in each part, in order."""
        return tuple(part["kept"] for part in self.artifact.parts)
