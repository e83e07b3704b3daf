"""Random tables are read as pyarrow or Python's library reads them, or refused with one clear line."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import TableSource
from orchestrator.errors import UserError
from orchestrator.source import PartCatalog, open_source

FOLDER = Path(tempfile.mkdtemp())
# quotes, separators and ends of lines at every place
texts = st.text(st.sampled_from('ab",;\t 5ä'), max_size=6)
lines = st.text(st.sampled_from('ab",\n\r\t 5ä'), max_size=6)
rows = st.lists(st.tuples(lines, lines), min_size=1, max_size=5)
quick = settings(max_examples=150, deadline=None)


def catalog_of(name: str, data: bytes, **options: Any) -> PartCatalog:
    path = FOLDER / name
    path.write_bytes(data)
    source = open_source(TableSource(uri=str(path), **options))
    (part,) = source.parts()
    catalog = source.catalog(part)
    assert source.rows(part).num_rows == catalog.table.num_rows  # type: ignore[attr-defined]
    return catalog


def captions_of(name: str, data: bytes, **options: Any) -> list[str] | None:
    """Return the captions, an empty one for null; None if the file is refused in one line."""
    try:
        return [one or "" for one in catalog_of(name, data, **options).table["caption"].to_pylist()]
    except UserError as error:
        text = str(error)
    assert name in text
    assert "\n" not in text
    return None


def written(rows: list[tuple[str, str]], separator: str, quoting: int) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=separator, quoting=quoting, lineterminator="\n").writerows([("url", "caption"), *rows])  # type: ignore[arg-type]
    return out.getvalue().encode()


@quick
@given(rows, st.sampled_from([("t.csv", ","), ("t.tsv", "\t")]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_a_writer_quotes_is_read_back(rows: list[tuple[str, str]], kind: tuple[str, str], quoting: int) -> None:
    name, separator = kind
    rows = [(url.replace("\r", ""), caption.replace("\r", "")) for url, caption in rows]
    expected = [caption for _, caption in rows]
    assert captions_of(name, written(rows, separator, quoting), quoting="minimal") == expected
    found = captions_of(name, written(rows, separator, quoting))
    assert found == expected or found is None or name == "t.tsv"


@quick
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_what_a_writer_does_not_quote_is_read_back(rows: list[tuple[str, str]]) -> None:
    rows = [(url.replace("\t", " "), caption.replace("\t", " ")) for url, caption in rows]
    data = "url\tcaption\n" + "".join(f"{url}x\t{caption}\n" for url, caption in rows)
    assert captions_of("t.tsv", data.encode(), quoting="none") == [caption for _, caption in rows]
    found = captions_of("t.tsv", data.encode())
    assert found is not None
    # doubled quotes within a field that has quotes around it are the only sign of a writer that quotes
    assert found == [caption for _, caption in rows] or '""' in data


@quick
@given(st.binary(max_size=40) | lines.map(str.encode), st.sampled_from(["t.csv", "t.tsv"]))
def test_any_bytes_are_rows_or_one_line(data: bytes, name: str) -> None:
    data = b"caption" + (b"," if name == "t.csv" else b"\t") + b"url\n" + data
    for quoting in ("auto", "minimal", "none"):
        captions_of(name, data, quoting=quoting)


@quick
@given(st.text(st.sampled_from('ab"", \n'), max_size=14), st.sampled_from(["", "\n"]))
def test_any_quotes_are_read_as_python_reads_them(text: str, end: str) -> None:
    text = "url,caption\n" + text.strip("\n") + end
    found = captions_of("t.csv", text.encode(), quoting="minimal")
    rows = [row or [""] for row in csv.reader(io.StringIO(text.rstrip("\n"), newline=""))][1:]
    # a short row ends before its caption
    assert found is None or found == [row[1] if len(row) > 1 else "" for row in rows]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
objects = st.fixed_dictionaries({"caption": st.none() | st.text(max_size=5)}, optional={"key": values, "x": values})


@quick
@given(st.lists(objects, min_size=1, max_size=4), st.booleans())
def test_json_lines_are_read_as_python_reads_them(rows: list[dict[str, Any]], as_array: bool) -> None:
    text = json.dumps(rows) if as_array else "".join(json.dumps(row) + "\n" for row in rows)
    captions = [None if row["caption"] is None else row["caption"] for row in rows]
    expected = ["".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in one or "") for one in captions]
    assert captions_of("t.jsonl", text.encode()) == expected


@quick
@given(st.text(max_size=20) | st.lists(objects, max_size=2).map(json.dumps).map(lambda text: text[:-2]))
def test_any_text_is_json_or_one_line(text: str) -> None:
    data = text.encode(errors="replace")
    found = captions_of("t.jsonl", data)
    try:
        lines = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    except ValueError:
        return
    assert found is None or len(found) in (len(lines), *(len(line) for line in lines if isinstance(line, list)))


KINDS = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(),
    pa.bool_(), pa.date32(), pa.timestamp("ms"), pa.duration("s"), pa.decimal128(5, 2), pa.binary(2), pa.uuid(),
    pa.json_(), pa.null(), pa.list_(pa.string()), pa.large_list(pa.int8()), pa.struct([("a", pa.int8())]),
    pa.map_(pa.string(), pa.int8()), pa.dictionary(pa.int8(), pa.string()),
]  # fmt: skip


@quick
@given(
    st.dictionaries(st.sampled_from(["key", "uid", "url", "width", "height", "status", "URL"]), st.sampled_from(KINDS))
)
def test_tables_of_any_types_are_read(kinds: dict[str, pa.DataType]) -> None:
    columns = {name: pa.nulls(2, kind) for name, kind in kinds.items()}
    sink = io.BytesIO()
    pq.write_table(pa.table({"caption": ["a", None], **columns}), sink)
    catalog = catalog_of("t.parquet", sink.getvalue())
    assert catalog.table["caption"].to_pylist() == ["a", None]
    assert catalog.table["key"].to_pylist() == ["0", "1"]
