"""Read CSV and TSV with quotes in the midst of fields, as Python's `csv` does: such a quote is text.

Slow, and only for files that do not keep to RFC 4180. Every row must have the width of the header."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

# in characters; a longer field is the rest of a file after a quote that nothing closes
MAX_FIELD = 1 << 24
# the last line of what is read: within a field if a quote before it is not closed
END = "\0end of file\0"


def read_leniently(
    data: bytes,
    separator: str,
    names: Sequence[str] | None,
    make_error: Callable[[str], Exception],
    *,
    skipped_lines: int,
) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return all rows, as text, and the last line of each, with the header, int64 [rows].

    `names` are the columns of a file without a header; `skipped_lines` come before `data`.
    Errors: that of `make_error(reason)` for a row that does not have the width of the header."""
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(io.StringIO(data.decode().rstrip("\r\n") + f"\n{END}\n", newline=""), delimiter=separator)
    rows, last_lines = list[list[str]](), [skipped_lines]
    header = None if names is None else list(names)
    try:
        for row in reader:
            if row == [END]:
                break
            # the reader returns an empty line as a row without fields
            fields = row or [""]
            header = header or fields
            if len(fields) != len(header):
                raise make_error(
                    f"line {last_lines[-1] + 1:,} has {len(fields):,} fields, expected {len(header):,}; correct the "
                    "file, or set source.quoting=none if quotes are text"
                )
            rows.append(fields)
            last_lines.append(skipped_lines + reader.line_num)
        else:
            raise make_error(f"line {last_lines[-2] + 1:,} has a quote that nothing closes; set source.quoting=none")
    except csv.Error as error:
        raise make_error(f"line {last_lines[-1] + 1:,}: {error}; set source.quoting=none") from error
    assert header is not None
    if len(set(header)) < len(header):
        raise make_error("two columns of its header have one name")
    body = rows if names is not None else rows[1:]
    values = {name: [row[place] or None for row in body] for place, name in enumerate(header)}
    return pl.DataFrame(values, schema=dict.fromkeys(header, pl.String)), np.array(last_lines[1:])
