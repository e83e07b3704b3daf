"""The metadata of MetaCLIP: a JSON list of entries, or a text file with one entry per line."""

from __future__ import annotations

import json
import re
from typing import Any

from orchestrator.errors import UserError
from orchestrator.source.captions import without_surrogates
from orchestrator.storage import files

EXPECTED = "a JSON list of strings, or a text file in UTF-8 with one entry per line"
# an entry may begin with a bracket: a text file is JSON only if a string follows, or nothing
LOOKS_LIKE_JSON = re.compile(r'\s*(\[\s*("|\]\s*$|$)|\{\s*")')


def read_entries(uri: str, setting: str = "metadata") -> list[str]:
    """The entries of the metadata, each once, in the order of the file; `setting` names the file in messages.

    Errors: `UserError`, one line, for a file that does not exist, is not text in UTF-8, or has no entry, and for JSON
    that is damaged or no list of strings."""
    if not files.exists(uri):
        raise UserError(f"{setting}: no file {uri}; expected {EXPECTED}")
    try:
        # some editors and PowerShell write a byte-order mark first
        text = files.read(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{setting}: byte {error.start:,} of {uri} is not UTF-8, expected {EXPECTED}; save the file again"
        ) from None
    is_json = uri.lower().endswith(".json") or LOOKS_LIKE_JSON.match(text)
    # only these end a line: str.splitlines also cuts at characters that may be part of an entry
    entries = (
        _of_json(text, f"{setting}: {uri}")
        if is_json
        else [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    )
    if not entries:
        raise UserError(f"{setting}: {uri} has no entries; expected {EXPECTED}")
    return list(dict.fromkeys(entries))


def _of_json(text: str, file: str) -> list[str]:
    try:
        entries: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{file} begins like JSON or is named .json, but is not JSON ({error}); expected {EXPECTED}"
        ) from None
    if not isinstance(entries, list):
        raise UserError(f"{file} is a JSON {_kind(entries)}; expected {EXPECTED}")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, str) or not entry.strip():
            found = "blank" if isinstance(entry, str) else f"a JSON {_kind(entry)}"
            raise UserError(f"{file}: entry {number:,} is {found}; expected {EXPECTED}")
    return [without_surrogates(entry) for entry in entries]


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
