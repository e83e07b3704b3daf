"""Secrets stay out of what a run writes down: its configuration stands in records, reports and trackers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.config.section import ConfigError

USER, PASSWORD = re.compile(r"(?<=://)[^/\s]+@"), re.compile(r"://[^/\s:@]*:[^/\s]*@")
# a bucket or web server has no user: what stands there is a key, whose secret may hold slashes; an object's name may
# hold an @, but no : before it
KEYED = re.compile(r"(?:s3a?|gs|gcs|https?)://(?:[^/\s@]+|[^/\s:@]+:(?!\d+/)[^\s@]*)@", re.IGNORECASE)
# of signed addresses: Azure's and Google's, Amazon's, and what web services call theirs
SIGNED = re.compile(
    r"(?<=[?&])(sig|signature|x-amz-signature|x-amz-security-token|x-amz-credential|x-goog-signature|x-goog-credential"
    r"|awsaccesskeyid|[a-z_]*token|api_?key|key|secret|password|passwd|pwd)=[^&#\s]*",
    re.IGNORECASE,
)
# hides its own
EXEMPT = ("tracking", "mlflow_uri")


def without_password(text: str) -> str:
    """Text in which no URI names a user, password, signature or token."""
    hidden = KEYED.sub(lambda found: found[0].split("://")[0] + "://***@", text)
    return SIGNED.sub(lambda found: f"{found[1]}=***", USER.sub("***@", hidden))


def check_no_secrets(raw: dict[str, Any]) -> None:
    """Errors: `ConfigError`, which does not repeat it, for a URI with a password, a token or a signature in it."""
    for path, text in _texts(raw, ()):
        if path != EXEMPT and "://" in text and any(kind.search(text) for kind in (PASSWORD, KEYED, SIGNED)):
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
