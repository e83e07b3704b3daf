"""Read caption tables in text form: CSV, TSV and JSON lines, plain or compressed (.gz, .zst). Each file is read whole.

Every line is a row or an error. No line is dropped, because row numbers identify pairs."""

from __future__ import annotations

import io

import polars as pl
import pyarrow as pa

from orchestrator.config import ConfigError
from orchestrator.source.schema import Problems, Shard
from orchestrator.storage.files import read

SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
ENDINGS = tuple(kind + compression for kind in (*SEPARATORS, *JSON_LINES) for compression in COMPRESSIONS)


def read_text_table(shard: Shard, problems: Problems) -> pl.DataFrame:
    """Read all rows of a text table. CSV columns are kept as text, so `007` stays `007`.

    Invalid UTF-8 is replaced and the affected lines are counted as problems.
    Errors: `ConfigError` with file and reason (a ragged line, bad JSON, an empty file); `OSError` if the read fails."""
    ending = next(ending for ending in sorted(ENDINGS, key=len, reverse=True) if shard.name.lower().endswith(ending))
    kind = "." + ending.split(".")[1]
    data = _utf8(shard, _decompressed(shard, read(shard.uri), ending.removeprefix(kind)), problems)
    try:
        if kind in SEPARATORS:
            return pl.read_csv(data, separator=SEPARATORS[kind], infer_schema=False, raise_if_empty=True)
        return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(f"source.uri: {shard.uri} cannot be read as {kind.lstrip('.')}: {reason}") from error


def _decompressed(shard: Shard, data: bytes, compression: str) -> bytes:
    if not compression:
        return data
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), COMPRESSIONS[compression]) as stream:
            return stream.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"source.uri: {shard.uri} cannot be decompressed: {error}") from error


def _utf8(shard: Shard, data: bytes, problems: Problems) -> bytes:
    try:
        data.decode()
        return data
    except UnicodeDecodeError:
        lines = [line.decode(errors="replace").encode() for line in data.split(b"\n")]
        for number, (before, after) in enumerate(zip(data.split(b"\n"), lines, strict=True), start=1):
            if before != after:
                problems.add("bad_utf8", f"{shard.name}: line {number} is not UTF-8")
        return b"\n".join(lines)
