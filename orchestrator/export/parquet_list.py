"""The kept rows as one Parquet file. Its schema is the union of the schemas of all parts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.catalog import to_parquet
from orchestrator.engine.artifact import Artifact
from orchestrator.engine.artifact_files import checked, read_parquet
from orchestrator.engine.console import Display
from orchestrator.engine.parts import PartResult, part_path
from orchestrator.errors import UserError
from orchestrator.export.kept import Kept, build_kept
from orchestrator.source import Part
from orchestrator.source.plain_values import plain, plain_type
from orchestrator.source.row_groups import NUM_THREADS, open_parquet
from orchestrator.storage import files

WHAT_TO_DO = "give the column one type in all files and repeat the run, or export to .npy"


def export_parquet(kept: Kept, parts: Sequence[Part], to: str, display: Display) -> None:
    """Write the file. Errors: `UserError` for a column without a common type of all files of the source."""
    beside = f"{to}.parts"
    made = build_kept(kept, parts, beside, partial(KeptRows, kept), display)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kept.parquet")
        with pq.ParquetWriter(path, _schema(made, parts), compression="zstd") as writer:
            for part in parts:
                table = read_parquet(part_path(made, part.index, "parquet"))
                writer.write_table(_conformed(table, writer.schema, part))
        files.put_file(path, to)
    files.remove(beside)


@dataclass(frozen=True)
class KeptRows:
    """Read the kept rows of one part."""

    kept: Kept

    def __call__(self, part: Part) -> PartResult:
        """Return the kept rows of the part as Parquet."""
        table = self.kept.table(part)
        return PartResult({"parquet": to_parquet(table)}, {"kept": table.num_rows})


def _schema(made: Artifact, parts: Sequence[Part]) -> pa.Schema:
    # the types of a text file follow from its values, so a column may be null in one file and a number in another
    def read(part: Part) -> pa.Schema:
        uri = part_path(made, part.index, "parquet")
        with checked(uri), open_parquet(uri) as file:
            return file.schema_arrow

    unified, seen = pa.schema([]), set[pa.Schema]()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for part, schema in zip(parts, pool.map(read, parts), strict=True):
            if schema not in seen:
                seen.add(schema)
                unified = _unified(unified, schema, part)
    return unified


def _unified(before: pa.Schema, schema: pa.Schema, part: Part) -> pa.Schema:
    # field by field: an error then names the column
    for field in schema:
        index = before.get_field_index(field.name)
        known = [before.field(index)] if index >= 0 else []
        # a dictionary in one file and text in another, or dictionaries of two kinds, are text together
        differ = known and known[0].type != field.type
        fields = [one.with_type(plain_type(one.type)) if differ else one for one in (*known, field)]
        try:
            (both,) = pa.unify_schemas([pa.schema([one]) for one in fields], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{part.shard.uri}: got column {field.name!r} of {field.type}, expected {known[0].type} as in the "
                f"files before it; {WHAT_TO_DO}"
            ) from error
        before = before.set(index, both) if known else before.append(both)
    return before


def _conformed(table: pa.Table, schema: pa.Schema, part: Part) -> pa.Table:
    columns = {}
    for field in schema:
        if field.name not in table.column_names:
            columns[field.name] = pa.nulls(table.num_rows, field.type)
            continue
        try:
            column = table[field.name]
            columns[field.name] = column if column.type == field.type else plain(column).cast(field.type)
        except pa.ArrowException as error:
            raise UserError(
                f"{part.shard.uri}: got a value of column {field.name!r} that does not fit {field.type}, the common "
                f"type of all files ({error}); {WHAT_TO_DO}"
            ) from error
    return pa.table(columns, schema=schema)
