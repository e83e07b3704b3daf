"""Prompt templates: text with `{c}` or `{}` where the class name goes. Without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

PLACEHOLDER = re.compile(r"\{c?\}")


def fill(template: str, name: str) -> str:
    """Return the prompt of a class."""
    # not str.format: a class name or template may contain other braces
    return PLACEHOLDER.sub(lambda _: name, template)


def check_templates(templates: Iterable[str]) -> None:
    """Check that each template has a placeholder. Errors: `ValueError`, with the number of the template from 1."""
    for number, template in enumerate(templates, start=1):
        if not PLACEHOLDER.search(template):
            raise ValueError(
                f"template {number}, {template!r}, has no placeholder for the class name: write {{c}} or {{}} where it "
                "goes"
            )
