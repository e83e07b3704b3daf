"""Keep secrets out of the configuration: records, reports and trackers repeat it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.config.section import ConfigError

USER, PASSWORD = re.compile(r"(?<=://)[^/\s]+@"), re.compile(r"://[^/\s:@]*:[^/\s]*@")
# a bucket or web server has no user, so the part before an @ is a key, and its secret may contain slashes. The name of
# an object may contain an @, but no : before it
KEYED = re.compile(r"(?:s3a?|gs|gcs|hf|https?)://(?:[^/\s@]+|[^/\s:@]+:(?!\d+/)[^\s@]*)@", re.IGNORECASE)
# parameters of signed URLs: Azure, Google, Amazon, and common names in web services
SIGNED = re.compile(
    r"(?<=[?&])(sig|signature|x-amz-signature|x-amz-security-token|x-amz-credential|x-goog-signature|x-goog-credential"
    r"|awsaccesskeyid|[a-z_]*token|api_?key|key|secret|password|passwd|pwd)=[^&#\s]*",
    re.IGNORECASE,
)
# this setting hides its own password
EXEMPT = ("tracking", "mlflow_uri")


def without_password(text: str) -> str:
    """Return the text with users, passwords, signatures and tokens in URIs replaced by ***."""
    hidden = KEYED.sub(lambda found: found[0].split("://")[0] + "://***@", text)
    return SIGNED.sub(lambda found: f"{found[1]}=***", USER.sub("***@", hidden))


def check_no_secrets(raw: dict[str, Any]) -> None:
    """Refuse a URI that contains a password, a token or a signature.

    Errors: `ConfigError`. Its message does not repeat the secret."""
    for path, text in _texts(raw, ()):
        if path != EXEMPT and "://" in text and any(kind.search(text) for kind in (PASSWORD, KEYED, SIGNED)):
            raise ConfigError(
                f"{'.'.join(path)} contains a password or signature, and reports repeat it; expected a plain URI "
                "and credentials from the environment (AWS_..., GOOGLE_..., AZURE_..., HF_TOKEN, FSSPEC_...)"
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
