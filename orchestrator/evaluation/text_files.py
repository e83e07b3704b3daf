"""Read class names and prompt templates: text files beside the tars of an evaluation set.

Line n of the class names is class n, counted from 0, so no line is dropped: blank and repeated names stay."""

from __future__ import annotations

import codecs
import logging
import re
from collections import Counter

from orchestrator.clip.prompts import check_templates
from orchestrator.errors import UserError
from orchestrator.storage import files

logger = logging.getLogger(__name__)
# not `str.splitlines`, which also splits at characters that a class name may contain
LINE_END = re.compile(r"\r\n|\n|\r")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# names of blank or repeated classes in one log line
MAX_NAMED = 5


def class_names(uri: str) -> tuple[str, ...]:
    """Return the class names, one per line. Blank lines and repeated names are logged.

    Errors: `UserError` if the file has no name, or is not text."""
    names = _lines(uri)
    if not any(names):
        raise UserError(f"{uri} has no class name; expected one per line")
    blank = [str(number) for number, name in enumerate(names) if not name]
    repeated = [repr(name) for name, count in Counter(filter(None, names)).items() if count > 1]
    for found, what in ((blank, "classes without a name, number"), (repeated, "names of more than one class,")):
        if found:
            more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            logger.warning("%s: %d %s %s%s", uri, len(found), what, ", ".join(found[:MAX_NAMED]), more)
    return names


def templates(uri: str) -> tuple[str, ...]:
    """Return the templates, one per line, without blank lines.

    Errors: `UserError` if one has no placeholder, or if the file is not text."""
    lines = tuple(filter(None, _lines(uri)))
    if not lines:
        logger.warning("%s has no template: OpenAI's are used", uri)
    try:
        check_templates(lines)
    except ValueError as error:
        raise UserError(f"{uri}: {error}") from error
    return lines


def _lines(uri: str) -> tuple[str, ...]:
    lines = [line.strip() for line in LINE_END.split(_text(uri))]
    # a line end at the end of the file starts no line
    return tuple(lines if lines[-1] else lines[:-1])


def _text(uri: str) -> str:
    data = files.read(uri)
    if b"\0" in data and not data.startswith(UTF16):
        raise UserError(f"{uri} is not text; expected UTF-8 or Latin-1, one entry per line")
    for encoding in ("utf-16",) if data.startswith(UTF16) else ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding not in ("utf-8-sig", "utf-16"):
            logger.warning("%s is not UTF-8; read as %s", uri, encoding)
        return text
    raise UserError(f"{uri} is not UTF-16 text, although it begins with a byte-order mark of UTF-16")
