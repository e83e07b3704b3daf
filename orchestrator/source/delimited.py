"""Read CSV and TSV. Whether a quote is text or encloses a field follows from the file, unless `source.quoting` says it.

A file may have been written with quotes (RFC 4180) if every quote opens a field, closes one, or is one of two quotes
that stand for one. Of the two readings, the one counts that gives more rows the width of the header. If both give
that, a quote in CSV encloses a field. In TSV it is text, because writers of TSV, img2dataset and LAION among them,
seldom quote; but quotes in the header or doubled quotes show a writer that does. A CSV file with two readings of
different rows is an error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.config import ConfigError, TableSource
from orchestrator.source.lenient_csv import read_leniently
from orchestrator.source.schema import Problems, Shard, UnreadableText

SETTING = "source.quoting"
QUOTE, NEWLINE, RETURN = 34, 10, 13
POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The rows of a file, with the header: the number of fields of each, and its first and last line, counted from 1.

    All are int64 [rows]."""

    widths: Places
    first_lines: Places
    last_lines: Places

    @cached_property
    def num_uneven(self) -> int:
        """Return the number of rows that do not have the width of the first one."""
        return int((self.widths != self.widths[0]).sum())

    @property
    def num_lines(self) -> int:
        """Return the number of lines of all rows."""
        return int(self.last_lines[-1] - self.first_lines[0]) + 1


class DelimitedFile:
    """The bytes of a CSV or TSV file, in UTF-8."""

    def __init__(self, shard: Shard, data: bytes, separator: str, config: TableSource) -> None:
        self.shard = shard
        self.config = config
        self.separator = separator
        if b"\n" not in data:
            # line ends of old Macs
            data = data.replace(b"\r", b"\n")
        text = data.lstrip(b"\r\n")
        self.skipped_lines = data[: len(data) - len(text)].count(b"\n")
        if not text:
            raise UnreadableText(shard, "is empty")
        is_wide = separator.encode() in text[: text.find(b"\n")]
        # an empty line at the end is no row, unless it may be an empty caption
        self.data = text.rstrip(b"\r\n") if is_wide and text.endswith((b"\n\n", b"\n\r\n")) else text
        self.bytes = np.frombuffer(self.data, np.uint8)

    @cached_property
    def plain(self) -> Rows:
        """Return the rows if quotes are text."""
        return self._rows(self.breaks, self.separators)

    @cached_property
    def quotes(self) -> Places:
        """Return the places of all quotes."""
        return np.flatnonzero(self.bytes == QUOTE)

    @cached_property
    def breaks(self) -> Places:
        """Return the places of all ends of lines."""
        return np.flatnonzero(self.bytes == NEWLINE)

    @cached_property
    def separators(self) -> Places:
        """Return the places of all separators."""
        return np.flatnonzero(self.bytes == ord(self.separator))

    def read(self, problems: Problems) -> pl.DataFrame:
        """Return all rows, as text. Short rows and rows of several lines are counted.

        Errors: `ConfigError` for a row that is too long, or for rows that depend on the quoting."""
        is_text = b'"' not in self.data or self.config.quoting == "none"
        if is_text or (self.separator == "," and self._is_strict()):
            frame = self._parse_even(None if is_text else '"')
            if frame is not None:
                return frame
        if is_text:
            return self._parse(self.plain, None, problems)
        if not self._is_strict():
            if self.separator == ",":
                problems.add("stray_quotes", f"{self.shard.name} has quotes that enclose no field; see {SETTING}")
            if self.config.quoting == "auto" and (self.separator == "\t" or not self.plain.num_uneven):
                return self._parse(self.plain, None, problems)
            frame, last_lines = read_leniently(
                self.data, self.separator, self.config.columns, self._error, skipped_lines=self.skipped_lines
            )
            self._count_multi_line_rows(last_lines, problems)
            return frame
        quoted = self._rows(self._outside(self.breaks), self._outside(self.separators))
        if self.config.quoting == "auto" and not self._has_quoted_fields(quoted):
            return self._parse(self.plain, None, problems)
        self._count_multi_line_rows(quoted.last_lines, problems)
        return self._parse(quoted, '"', problems)

    def _has_quoted_fields(self, quoted: Rows) -> bool:
        if self.separator == "," and not quoted.num_uneven and len(quoted.widths) == quoted.num_lines:
            return True
        plain = self.plain
        if quoted.num_uneven != plain.num_uneven:
            return quoted.num_uneven < plain.num_uneven
        if len(plain.widths) == len(quoted.widths):
            return self.separator == "," or self.bytes[0] == QUOTE or self._has_doubled_quotes()
        if self.separator == "," and plain.widths[0] > 1 and not plain.num_uneven:
            row = int(np.flatnonzero(quoted.last_lines > quoted.first_lines)[0])
            raise ConfigError(
                f"{SETTING}: {self.shard.uri}: the quote on line {quoted.first_lines[row]:,} closes on line "
                f"{quoted.last_lines[row]:,}, but each of these lines is a whole row too; set {SETTING}=none if quotes "
                f"are text, {SETTING}=minimal if they enclose fields"
            )
        return self.separator == ","

    def _is_strict(self) -> bool:
        """Return whether every quote opens a field, closes one, or is doubled."""
        if len(self.quotes) % 2:
            return False
        opening, closing = self.quotes[::2], self.quotes[1::2]
        before = self.bytes[np.maximum(opening - 1, 0)]
        after = self.bytes[np.minimum(closing + 1, len(self.bytes) - 1)]
        # a closing quote beside an opening one: the two stand for one quote in the text of the field
        begins = np.isin(before, (ord(self.separator), NEWLINE, QUOTE)) | (opening == 0)
        ends = np.isin(after, (ord(self.separator), NEWLINE, RETURN, QUOTE))
        return bool(begins.all() and ends.all())

    def _has_doubled_quotes(self) -> bool:
        inner = self.quotes[1:-1]
        return bool((inner[1::2] == inner[::2] + 1).any())

    def _outside(self, places: Places) -> Places:
        """Return the places that are in no quoted field."""
        return places[np.searchsorted(self.quotes, places) % 2 == 0]

    def _rows(self, ends: Places, separators: Places) -> Rows:
        if not len(ends) or ends[-1] != len(self.bytes) - 1:
            ends = np.append(ends, len(self.bytes))
        widths = np.diff(np.searchsorted(separators, ends), prepend=0) + 1
        last_lines = np.searchsorted(self.breaks, ends) + 1 + self.skipped_lines
        first_lines = np.append(self.skipped_lines, last_lines[:-1]) + 1
        return Rows(widths, first_lines, last_lines)

    def _parse_even(self, quote: str | None) -> pl.DataFrame | None:
        """Return the rows if each line is one, with the width of the header; None otherwise or if unsure. Fast."""
        # without a line end at the end of the file Polars leaves out an empty field after the last one
        if self.config.columns is not None or not self.data.endswith(b"\n"):
            return None
        try:
            frame = self._read_csv(quote)
        except POLARS_ERRORS:
            return None
        lines = self.data.count(b"\n")
        # Polars refuses long rows, and fills short ones with nulls
        if quote is None:
            is_even = self.data.count(self.separator.encode()) == (frame.width - 1) * lines
        else:
            is_even = frame.width > 1 and not frame[:, -1].null_count()
        return frame if is_even and frame.height == lines - 1 else None

    def _read_csv(self, quote: str | None) -> pl.DataFrame:
        names = self.config.columns
        return pl.read_csv(
            self.data,
            separator=self.separator,
            quote_char=quote,
            has_header=names is None,
            schema=None if names is None else dict.fromkeys(names, pl.String),
            infer_schema=False,
        )

    def _parse(self, rows: Rows, quote: str | None, problems: Problems) -> pl.DataFrame:
        names = self.config.columns
        self._check_widths(rows, int(rows.widths[0]) if names is None else len(names), problems)
        try:
            frame = self._read_csv(quote)
        except POLARS_ERRORS as error:
            raise self._error(str(error).split("\n", 1)[0]) from error
        expected = len(rows.widths) - (names is None)
        if frame.height != expected:
            raise self._error(f"got {frame.height:,} rows from {expected:,} lines; set {SETTING}")
        return frame

    def _check_widths(self, rows: Rows, width: int, problems: Problems) -> None:
        long = np.flatnonzero(rows.widths > width)
        if len(long):
            line, got = int(rows.first_lines[long[0]]), int(rows.widths[long[0]])
            quoting = f", or set {SETTING} if quotes are the reason" if len(self.quotes) else ""
            header = "the header" if self.config.columns is None else "source.columns"
            raise self._error(
                f"line {line:,} has {got:,} fields, expected {width:,} as in {header}; rows like this: {len(long):,}; "
                f"correct the file{quoting}"
            )
        if (widest := int(rows.widths.max())) < width:
            raise self._error(f"source.columns has {width:,} names, and no line has more than {widest:,} fields")
        for row in np.flatnonzero(rows.widths < width):
            line, got = int(rows.first_lines[row]), int(rows.widths[row])
            problems.add("short_row", f"{self.shard.name}: line {line:,} has {got:,} of {width:,} fields")

    def _count_multi_line_rows(self, last_lines: Places, problems: Problems) -> None:
        lengths = np.diff(last_lines, prepend=self.skipped_lines)
        for row in np.flatnonzero(lengths > 1):
            last = int(last_lines[row])
            first = last - int(lengths[row]) + 1
            problems.add("multi_line_row", f"{self.shard.name}: lines {first:,} to {last:,} are one row, in quotes")

    def _error(self, reason: str) -> ConfigError:
        kind = "csv" if self.separator == "," else "tsv"
        return ConfigError(f"source.uri: {self.shard.uri} cannot be read as {kind}: {reason}")
