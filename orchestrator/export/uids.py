"""The kept uids in DataComp's format: one sorted array of 128-bit numbers."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from orchestrator.engine.artifact_files import checked, damaged
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, part_path
from orchestrator.errors import UserError
from orchestrator.export.kept import Kept, build_kept
from orchestrator.source import Part
from orchestrator.storage import files

UID_DTYPE = np.dtype("u8,u8")
UID_CHARS = 32
_UID = re.compile(rf"[0-9a-fA-F]{{{UID_CHARS}}}")


def export_uids(kept: Kept, parts: Sequence[Part], to: str, display: Display) -> None:
    """Write the file. Errors: `UserError`, through Ray, for a kept pair without a uid in DataComp's format."""
    beside = f"{to}.parts"
    made = build_kept(kept, parts, beside, partial(KeptUids, kept), display)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kept.npy")
        uids = np.lib.format.open_memmap(path, mode="w+", dtype=UID_DTYPE, shape=(kept.keep.num_pairs,))
        start = 0
        for index, part in enumerate(made.parts):
            uri = part_path(made, index, "uids")
            with checked(uri):
                found = np.frombuffer(files.read(uri), UID_DTYPE)
            if len(found) != part["kept"]:
                raise damaged(uri, f"got {len(found):,} uids, expected {part['kept']:,}")
            uids[start : start + part["kept"]] = found
            start += part["kept"]
        # DataComp's tools use binary search
        uids.sort()
        uids.flush()
        files.put_file(path, to)
    files.remove(beside)


@dataclass(frozen=True)
class KeptUids:
    """Read the kept uids of one part."""

    kept: Kept

    def __call__(self, part: Part) -> PartResult:
        """Return the kept uids of the part, as two unsigned 64-bit halves, the higher one first."""
        uids = self.kept.rows(part.index, ("uid",))[1]["uid"].to_pylist()
        for uid in uids:
            if uid is None or not _UID.fullmatch(uid):
                raise UserError(
                    f"{part.shard.name}: got uid {uid!r}, expected DataComp's {UID_CHARS} hexadecimal digits "
                    "for every pair; export to .parquet instead"
                )
        halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids]
        return PartResult({"uids": np.array(halves, UID_DTYPE).tobytes()}, {"kept": len(uids)})
