"""Further metadata of every pair, as an artifact beside the catalog with one named column for each field.

A step that needs a field adds the stage that reads it. The catalog stays as it is, so a new field changes no embedding,
clustering or model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.catalog import Catalog, read_columns, to_parquet
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, PartsJob, part_path
from orchestrator.engine.role import Role
from orchestrator.engine.stage import Stage
from orchestrator.source import Part, Source
from orchestrator.storage import files

VERSION = 1
# the sizes of an image before img2dataset resized it
ORIGINAL_SIZE = ("original_width", "original_height")


@dataclass(frozen=True)
class Fields:
    """The fields of a pool; `table` reads those of one part."""

    artifact: Artifact

    def table(self, index: int, rows: np.ndarray) -> pa.Table:
        """Return the fields of the given rows of a part, int32 columns; null where a pair has none."""
        names = tuple(self.artifact.made_from["names"])
        return read_columns(part_path(self.artifact, index, "parquet"), names).take(rows)


def fields_stage(store_uri: str, source: Source, catalog: Catalog, names: Sequence[str], *, step: str) -> Stage:
    """Return the stage that reads the named fields of every pair. `step` is the selection step that needs them."""
    artifact = Artifact.of(
        store_uri,
        "fields",
        version=VERSION,
        source=source.identity(),
        catalog=catalog.artifact,
        names=list(names),
    )
    return Stage(
        name=f"read fields, {step}",
        role=Role.READ_FIELDS,
        step=step,
        does=f"read {' and '.join(names)} where the metadata has them",
        artifact=artifact,
        build=BuildFields(artifact, source, catalog, tuple(names), step),
    )


@dataclass(frozen=True)
class BuildFields:
    """Builds the fields."""

    artifact: Artifact
    source: Source
    catalog: Catalog
    names: tuple[str, ...]
    step: str

    def __call__(self, display: Display) -> Artifact:
        """Writes the fields of every part."""
        return PartsJob(
            self.artifact,
            self.catalog.parts_of(self.source),
            partial(FieldsPart, self.source, self.catalog, self.names),
            name=f"read fields, {self.step}",
        ).build(display)


@dataclass(frozen=True)
class FieldsPart:
    """The work on one part: reads its fields."""

    source: Source
    catalog: Catalog
    names: tuple[str, ...]

    def __call__(self, part: Part) -> PartResult:
        """Return the table of fields. Errors: `StoreError` if the part no longer has the rows of its catalog."""
        keys = self.catalog.table(part.index, ("key",))["key"].to_pylist()
        table = self.source.fields(part, keys, self.names)
        if table.num_rows != len(keys):
            raise files.StoreError(
                f"{part.shard.uri} has {table.num_rows:,} rows, expected {len(keys):,} as in its catalog; the shard "
                "changed since its catalog was made; run the same command again to read it again"
            )
        present = {name: table.num_rows - table[name].null_count for name in self.names}
        return PartResult({"parquet": to_parquet(table)}, {"rows": table.num_rows, "present": present})


def preferred(first: pa.Table, second: pa.Table, names: Sequence[tuple[str, str]]) -> tuple[list[pa.Array], np.ndarray]:
    """Return the columns of `first` in rows where it has all of them, and those of `second` elsewhere.

    `names` pairs the columns of the two tables. The mask, bool [n], says in which rows `first` was used."""
    has_all = np.ones(first.num_rows, bool)
    for name, _ in names:
        has_all &= first[name].is_valid().to_numpy()
    columns = [pc.if_else(pa.array(has_all), first[mine].combine_chunks(), second[theirs]) for mine, theirs in names]
    return columns, has_all
