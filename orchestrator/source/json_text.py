"""Text of JSON files. JSON can escape half of a surrogate pair (`\\ud800`), which no Unicode text can contain.

Every reader replaces such a half with U+FFFD, as decoders of UTF-8 and UTF-16 do. This module does it in the bytes of
a file before they are parsed, because parsers differ: some make other characters of a half, some refuse it."""

from __future__ import annotations

import re

import numpy as np

_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}" + _LOW
# a half of a pair without the other one, or an escaped backslash before what looks like a half: then all is checked
_SUSPECT = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!" + _LOW + rb")|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})" + _LOW + rb"|\\\\u[dD]"
)
# every escape in order, so that the backslashes of `\\\\ud800` (a backslash, then text) pair up
_ESCAPE = re.compile(_PAIR + rb"|\\(u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)


def replace_lone_escapes(data: bytes) -> bytes:
    """Return JSON with the escape of every lone surrogate replaced by `\\ufffd`."""
    if not _has_surrogates(data) or not _SUSPECT.search(data):
        return data
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found[1] else found[0], data)


def _has_surrogates(data: bytes) -> bool:
    # several times faster than a search for the three bytes, two of which are frequent
    if b"\\" not in data:
        return False
    codes = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(codes[:-2] == ord("\\"))
    return bool(((codes[starts + 1] == ord("u")) & ((codes[starts + 2] | 0x20) == ord("d"))).any())
