"""Export of the keep list for other tools: Parquet (with a caption table's columns, ready for img2dataset), DataComp
`.npy` uids, or WebDataset shards of the kept pairs.

Ray tasks write parts beside the target, so a killed export resumes. The driver then joins the parts of a single file in
order, one at a time, in its temporary folder (TMPDIR), which needs the file's size on disk: 16 bytes per pair for uids,
32 GB for two billion. Uids are sorted there too, so the driver's memory does not grow with them. Imports `training` and
the layers below it."""

from __future__ import annotations

import logging
import os

from orchestrator.engine.console import Display
from orchestrator.engine.run_record import RunRecord
from orchestrator.errors import UserError
from orchestrator.export.kept import Kept, check_apart
from orchestrator.export.parquet_list import export_parquet
from orchestrator.export.shards import export_shards
from orchestrator.export.uids import UID_DTYPE, export_uids

__all__ = ["UID_DTYPE", "export_keep_list"]
logger = logging.getLogger(__name__)
FORMATS = {".parquet": export_parquet, ".npy": export_uids, "": export_shards}


def export_keep_list(record: RunRecord, to: str, display: Display) -> None:
    """Write the keep list of a run to `to`. The ending is the format; a folder (no ending) gets WebDataset shards.

    Errors: `UserError` for an unknown ending, a format that does not fit the source, a source that has changed since
    the run, or a target with files of something else; from tasks, through Ray, for a wrong uid."""
    ending = os.path.splitext(to.rstrip("/").rsplit("/", 1)[1])[1]
    if ending not in FORMATS:
        raise UserError(
            f"to={to}: got ending {ending!r}, expected .parquet, .npy (DataComp uids), or a folder for "
            "WebDataset shards"
        )
    kept = Kept.of(record)
    parts = kept.catalog.parts_of(kept.source)
    check_apart(to, parts, is_folder=ending == "")
    FORMATS[ending](kept, parts, to, display)
    logger.info("%d pairs exported to %s", kept.keep.num_pairs, to)
    display.line(f"{kept.keep.num_pairs:,} pairs exported to {to}")
