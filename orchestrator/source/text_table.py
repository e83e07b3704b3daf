"""Read caption tables in text form: CSV, TSV and JSON lines, plain or compressed (.gz, .zst). Each file is read whole.

Every line is a row or an error, or is counted as a part of a row. No line is dropped, because row numbers identify
pairs."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import pyarrow as pa

from orchestrator.config import ConfigError, TableSource
from orchestrator.source.delimited import DelimitedFile
from orchestrator.source.json_lines import read_json
from orchestrator.source.schema import Problems, Shard, UnreadableText
from orchestrator.storage.files import read

VERSION = 1
"""Part of a pool's fingerprint if it has text files. It changes with the rows and texts that they give."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
JSON = ".json"
COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
ENDINGS = tuple(kind + compression for kind in (*SEPARATORS, *JSON_LINES) for compression in COMPRESSIONS)
JSON_ENDINGS = tuple(JSON + compression for compression in COMPRESSIONS)
"""Read if `source.uri` names them: a folder may have other JSON files, such as img2dataset's statistics."""
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
NO_TEXT = {b"PAR1": "Parquet", b"PK\x03\x04": "a zip archive or a spreadsheet", b"\xfd7zXZ": "xz", b"ARROW1": "Arrow"}
# in this order: the mark of UTF-32 begins with that of UTF-16
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# in bytes, searched for the NULs of UTF-16 without a mark
SAMPLE = 1 << 10


def read_text_table(
    shard: Shard, config: TableSource, problems: Problems, *, text_names: tuple[str, ...] = ()
) -> pa.Table:
    """Read all rows of a text table. CSV columns are kept as text, so `007` stays `007`.

    Invalid UTF-8 is replaced and the affected lines are counted as problems. `text_names`: see `read_json`.
    Errors: `ConfigError` with file and reason (a ragged line, bad JSON); `UnreadableText` for an empty or damaged file;
    `OSError` if the read fails."""
    kind, compression = _format(shard.name)
    data = _utf8(shard, _decompressed(shard, read(shard.uri), compression), problems)
    if kind in SEPARATORS:
        return DelimitedFile(shard, data, SEPARATORS[kind], config).read(problems).to_arrow()
    return read_json(shard, data, text_names).to_arrow()


def is_delimited(name: str) -> bool:
    """Return whether a file name is that of CSV or TSV."""
    return _format(name)[0] in SEPARATORS


def endings_for(uri: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the endings of text tables that a URI, or a list of them, may name."""
    items = [uri] if isinstance(uri, str) else uri or []
    return (*ENDINGS, *JSON_ENDINGS) if any(item.lower().endswith(JSON_ENDINGS) for item in items) else ENDINGS


def _format(name: str) -> tuple[str, str]:
    endings = (ending for ending in (*ENDINGS, *JSON_ENDINGS) if name.lower().endswith(ending))
    ending = max(endings, key=len, default="")
    kind = "." + ending.split(".")[1] if ending else ""
    return kind, ending.removeprefix(kind)


def _decompressed(shard: Shard, data: bytes, compression: str) -> bytes:
    # a server may have decompressed a file, or somebody renamed it: its first bytes count more than its name
    found = next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)
    if found is None and not compression:
        return data
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), found or COMPRESSIONS[compression]) as stream:
            return stream.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise UnreadableText(shard, f"cannot be decompressed: {error}") from error


def _utf8(shard: Shard, data: bytes, problems: Problems) -> bytes:
    if other := next((name for magic, name in NO_TEXT.items() if data.startswith(magic)), None):
        raise ConfigError(f"source.uri: {shard.uri} cannot be read as text: it is {other}")
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    encoding = MARKS.get(mark) or _guessed(data)
    body = data.removeprefix(mark)
    if encoding != "utf-8":
        try:
            return body.decode(encoding).encode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"source.uri: {shard.uri} cannot be read as {encoding.upper()}: {error}") from error
    try:
        body.decode()
        return body
    except UnicodeDecodeError:
        return _with_replacements(shard, body, problems)


def _guessed(data: bytes) -> str:
    # every other byte of western text is 0 in UTF-16
    sample = data[:SAMPLE]
    if sample[1::2].count(0) > len(sample) // 4:
        return "utf-16-le"
    return "utf-16-be" if sample[::2].count(0) > len(sample) // 4 else "utf-8"


def _with_replacements(shard: Shard, data: bytes, problems: Problems) -> bytes:
    lines = data.split(b"\n")
    decoded = [line.decode(errors="replace").encode() for line in lines]
    for number, (before, after) in enumerate(zip(lines, decoded, strict=True), start=1):
        if before != after:
            problems.add("bad_utf8", f"{shard.name}: line {number} is not UTF-8")
    return b"\n".join(decoded)
