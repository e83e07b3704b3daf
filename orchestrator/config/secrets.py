"""Secrets stay out of what a run writes down: its configuration stands in records, reports and trackers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.config.section import ConfigError

USER, PASSWORD = re.compile(r"(?<=://)[^/\s]+@"), re.compile(r"://[^/\s:@]*:[^/\s]*@")
# of signed addresses: Azure's and Google's, Amazon's, and what web services call theirs
SIGNED = re.compile(r"[?&](sig|signature|x-amz-signature|x-goog-signature|token|access_token|api_key)=", re.IGNORECASE)
# hides its own
EXEMPT = ("tracking", "mlflow_uri")


def without_password(text: str) -> str:
    """Text in which no URI names a user or password."""
    return USER.sub("***@", text)


def check_no_secrets(raw: dict[str, Any]) -> None:
    """Errors: `ConfigError`, which does not repeat it, for a URI with a password or a signature in it."""
    for path, text in _texts(raw, ()):
        if path != EXEMPT and "://" in text and (PASSWORD.search(text) or SIGNED.search(text)):
            raise ConfigError(
                f"{'.'.join(path)} has a password or signature in it, and reports repeat it; expected a plain URI, "
                "with credentials from the environment (AWS_..., GOOGLE_..., AZURE_..., FSSPEC_...)"
            )


def _texts(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, (*path, str(key)))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value, path)
