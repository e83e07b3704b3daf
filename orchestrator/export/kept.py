"""The common part of all formats: the kept rows of a run with an unchanged source, and the check of the target."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.config import parse
from orchestrator.data.catalog import Catalog
from orchestrator.data.keep_list import KeepList
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartsJob, Work
from orchestrator.engine.run_record import RunRecord
from orchestrator.errors import UserError
from orchestrator.selection import final_keep_list, score_columns
from orchestrator.selection.score_column import ScoreColumn
from orchestrator.source import CaptionTable, Part, Source, open_source
from orchestrator.storage import files

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The keep list of a run with its source, catalog and scores, from which the kept rows are read.

    `full_names`: the file names of the shards do not identify them, so their URIs are exported."""

    source: Source
    catalog: Catalog
    keep: KeepList
    scores: list[ScoreColumn]
    full_names: bool

    @classmethod
    def of(cls, record: RunRecord) -> Kept:
        """Return the kept pairs of a finished run. Errors: `UserError` without a keep list or for a changed source."""
        catalogs, keep = record.of_kind("catalog"), final_keep_list(record)
        if not catalogs or keep is None:
            raise UserError("this run has no keep list (it only evaluated a checkpoint); export a run or a select")
        config, catalog = parse(record.config).source, Catalog(catalogs[0])
        source = open_source(config)
        catalog.check_source(source, config, made=f"the run {record.name}")
        parts = source.parts()
        shards = [part.shard.name for part in parts]
        return cls(
            source=source,
            catalog=catalog,
            keep=KeepList(keep),
            scores=score_columns(record),
            full_names=shards != sorted(shards) or _repeats(parts),
        )

    def rows(self, index: int, columns: tuple[str, ...]) -> tuple[NDArray[np.int64], pa.Table]:
        """Return the kept rows of a part: row numbers, int64 [n], ascending, and the named columns of the catalog."""
        catalog = self.catalog.table(index, columns)
        rows = np.flatnonzero(self.keep.mask(index, catalog.num_rows))
        return rows, catalog.take(rows)

    def table(self, part: Part) -> pa.Table:
        """Return the kept rows of a part: `shard`, `row`, `key`, the scores, and the columns of a caption table."""
        rows, catalog = self.rows(part.index, ("key",))
        shard = part.shard.uri if self.full_names else part.shard.name
        columns: dict[str, Any] = {
            "shard": pa.array([shard] * len(rows), pa.string()),
            "row": pa.array(rows + part.first_row),
            "key": catalog["key"],
        }
        num_rows = self.catalog.rows_per_part[part.index]
        for score in self.scores:
            columns[score.name] = pa.array(score.of_part(part.index, num_rows)[rows])
        # a part without kept pairs is not read: its file may be damaged
        if isinstance(self.source, CaptionTable) and len(rows):
            own = self.source.rows(part).take(rows)
            # decided from the name of the column, not from its values, so it is the same for every part
            is_key = self.source.key_column(part.shard, own.schema) == "key"
            names = _unique(own.column_names)
            columns |= {
                name if name not in columns else f"source_{name}": column
                for name, column in zip(names, own.columns, strict=True)
                if not (name == "key" and is_key)
            }
        return pa.table(columns)


def _unique(names: Sequence[str]) -> list[str]:
    # a Parquet file may have several columns of one name; the names are those that Polars gives to columns of CSV
    earlier = (names[:place].count(name) for place, name in enumerate(names))
    return [f"{name}_duplicated_{count - 1}" if count else name for name, count in zip(names, earlier, strict=True)]


def _repeats(parts: Sequence[Part]) -> bool:
    named = {(part.shard.name, part.shard.uri) for part in parts}
    return len({name for name, _ in named}) < len(named)


def check_apart(to: str, parts: Sequence[Part], *, is_folder: bool) -> None:
    """Check that an export does not overwrite files of its own source. Errors: `UserError` if it would."""
    taken = {uri for part in parts for uri in (part.shard.uri, part.shard.sidecar_uri) if uri}
    what = "one of the source's own files"
    if is_folder:
        taken, what = {os.path.dirname(uri) for uri in taken}, "the folder of the source's own shards"
    else:
        # following the links of a million files takes long, so only files of the same name are compared
        taken = {uri for uri in taken if os.path.basename(uri) == os.path.basename(to)}
    if files.canonical(to) in map(files.canonical, taken):
        raise UserError(f"to={to}: got {what}, which the export would overwrite; expected another path")


def build_kept(
    kept: Kept, parts: Sequence[Part], folder: str, make_work: Callable[[], Work], display: Display
) -> Artifact:
    """Write the kept rows of every part to `folder`. Parts that an earlier export finished there are not written
    again."""
    made = Artifact.of(folder, "export", version=VERSION, keep=kept.keep.artifact)
    return PartsJob(made, parts, make_work, name="export", count="kept").build(display)
