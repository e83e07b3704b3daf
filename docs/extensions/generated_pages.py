"""Fill a page's `<!-- generated: NAME -->` lines with text that is made from the code when the site is built."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import config_reference
import schema_reference
from sphinx.application import Sphinx

MARKER = re.compile(r"^<!-- generated: (\w+) ([\w.]+) -->$", re.MULTILINE)
GENERATORS: dict[str, Callable[[str], str]] = {
    "configuration": config_reference.markdown,
    "schema": schema_reference.markdown,
}


def fill(app: Sphinx, docname: str, content: list[str]) -> None:
    """Replace the markers of a page."""
    content[0] = MARKER.sub(lambda found: GENERATORS[found[1]](found[2]), content[0])


def always_read(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The pages with markers: the code they are made from may have changed."""
    return [name for name in env.found_docs if MARKER.search(env.doc2path(name).read_text())]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to the build."""
    app.connect("source-read", fill)
    app.connect("env-get-outdated", always_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
