"""Which member, JSON key or column holds a pair's caption, and the text of a value that may be a list or no text.

One rule for all readers: a lone surrogate, which UTF-8 cannot encode, becomes U+FFFD; of a list of captions the first
text is used; an object is not a caption."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# tried in this order if no setting names another one
MEMBER_NAMES = ("txt", "text", "caption")
CAPTION_NAMES = ("caption", "text", "captions", "txt", "texts", "alt_text", "alt")
SEVERAL, NOT_TEXT = "several_captions", "caption_not_text"
"""Kinds of problems: more than one caption, of which the first is used; a value that is not text, which is not used."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBERED = re.compile(r"(\d{1,9})\.([^.]+)")


def without_surrogates(text: str) -> str:
    """Return the text with every lone surrogate replaced by U+FFFD. (A pair of them is one character in Python.)"""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def is_blank(text: str | None) -> bool:
    """Return whether there is nothing to read in a text."""
    return text is None or not text.strip()


def plain_text(value: Any) -> str | None:
    """Return text, bytes or a number as text; None for a missing value and for everything else."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    # NaN, which pandas writes for missing numbers, is the value that differs from itself
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return str(value) if is_number else None


def caption_text(value: Any) -> tuple[str | None, str | None]:
    """Return the caption in a value of JSON or Parquet, and the kind of its problem (`SEVERAL`, `NOT_TEXT` or None)."""
    if isinstance(value, list):
        texts = [text for text in map(plain_text, value) if not is_blank(text)]
        if texts:
            return texts[0], SEVERAL if len(texts) > 1 else None
        return None, NOT_TEXT if any(one is not None and one != "" for one in value) else None
    text = plain_text(value)
    is_missing = value is None or value != value
    return text, NOT_TEXT if text is None and not is_missing else None


def caption_field(names: Iterable[str], wanted: str | None) -> str | None:
    """Return the field with the caption: `wanted`, or else the first usual name, in any case; None if there is none."""
    if wanted is None and "caption" in (names := list(names)):
        return "caption"
    by_lower: dict[str, str] = {}
    for name in names:
        if name == wanted:
            return name
        by_lower.setdefault(name.lower(), name)
    tried = CAPTION_NAMES if wanted is None else (wanted.lower(),)
    return next((by_lower[name] for name in tried if name in by_lower), None)


def member_rank(extension: str, wanted: str | None) -> int | None:
    """Return how early a member is tried for the caption, lowest first; None if it cannot hold one.

    `0.txt`, `1.txt`, ... are several captions of a pair; they come after the members without a number."""
    names = MEMBER_NAMES if wanted is None else (wanted.lower(),)
    if extension in names:
        return names.index(extension)
    numbered = _NUMBERED.fullmatch(extension)
    if numbered and numbered[2] in names:
        return len(names) * (1 + int(numbered[1])) + names.index(numbered[2])
    return None
