"""The column `status` of a Parquet file. img2dataset writes there whether a download succeeded; other words vary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import ConfigError
from orchestrator.source.columns import require, text_values
from orchestrator.source.plain_values import is_single
from orchestrator.source.schema import Problems, Shard

STATUS = "status"
SETTING = "source.success_status"
# how img2dataset's words for a failed download begin
FAILED = "fail"


def status_column(shard: Shard, schema: pa.Schema, success: Sequence[str] | None) -> list[str]:
    """Return the name of the column, in a list; an empty list without one, or without words of success.

    Errors: `ConfigError` if it holds lists or records."""
    if success is None or STATUS not in schema.names:
        return []
    require(shard, schema.names, STATUS, SETTING)
    kind = schema.field(STATUS).type
    if not is_single(kind):
        raise ConfigError(f"{SETTING}: {shard.name}: column {STATUS} is {kind}; expected text, or {SETTING}=null")
    return [STATUS]


def has_succeeded(shard: Shard, column: pa.ChunkedArray, success: Sequence[str], problems: Problems) -> np.ndarray:
    """Return whether the status of each row is a word of success, bool [n]; a row without a status has failed.

    Words that are neither success nor failure are counted by row, and named."""
    words = pc.utf8_lower(text_values(column, f"{shard.name}: column {STATUS}", Problems()))
    succeeded = pc.fill_null(pc.is_in(words, value_set=pa.array([word.lower() for word in success], words.type)), False)
    unknown = pc.and_not(pc.invert(pc.starts_with(words, FAILED)), succeeded)
    for count in pc.value_counts(words.filter(unknown)):
        word, number = count["values"].as_py(), count["counts"].as_py()
        example = f"{shard.name}: {number:,} of {len(words):,} rows have status {word!r} and count as failed"
        problems.add("unknown_status", f"{example}; if they have images, add it to {SETTING}")
        problems.counts["unknown_status"] += number - 1
    return succeeded.to_numpy(zero_copy_only=False)
