"""`hf://`: repositories on the Hugging Face Hub, read through the file system of `huggingface_hub`.

A process has one file system, because each lists a folder before it reads a file in it. The token (HF_TOKEN), the
address (HF_ENDPOINT) and HF_HUB_OFFLINE come from the environment. Errors are recognised by the names of their classes,
because the package is optional."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

from orchestrator.errors import UserError, first_line

logger = logging.getLogger(__name__)

SCHEME = "hf://"
LIBRARY = "huggingface_hub"
FORM = "hf://datasets/OWNER/NAME[@REVISION]/PATH"
# prefixes of repositories other than models
KINDS = ("datasets", "spaces", "buckets")
# slashes in hf://datasets/OWNER
OWNER_SLASHES = 3
# HTTP status codes
BAD_TOKEN, FORBIDDEN, MISSING, TEMPORARY = 401, 403, (404, 410), (408, 416, 425, 429)
# the hub counts requests in windows of five minutes
MAX_RESET = 300.0
_RESET = re.compile(r"\bt\s*=\s*(\d+)")
ADVICE = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it, or name a copy of the files in a folder or bucket",
    "GatedRepoError": "the repository is gated; accept its conditions on its page, and set HF_TOKEN on every node to a "
    "token of that account",
    "RevisionNotFoundError": f"no such revision; expected a branch, a tag or a commit: {FORM}",
    "RepositoryNotFoundError": f"no such repository, or it is private; expected {FORM}; for a private one, set "
    "HF_TOKEN on every node to a token that can read it",
    "BucketNotFoundError": "no such bucket, or it is private; for a private one, set HF_TOKEN on every node to a token "
    "that can read it",
    "HFValidationError": f"not the name of a repository; expected {FORM}",
    "HfUriError": f"not an address of the hub; expected {FORM}",
    "DisabledRepoError": "the hub has disabled access to the repository",
}
"""What to do about an error, by the name of its class; the first that fits counts."""


def is_hub(uri: str) -> bool:
    """Return whether the URI names a repository on the hub."""
    return uri.startswith(SCHEME)


def is_owner(uri: str) -> bool:
    """Return whether the URI is `hf://datasets/OWNER`, which stands for all datasets of an owner."""
    return uri.startswith(f"{SCHEME}datasets/") and uri.rstrip("/").count("/") == OWNER_SLASHES


def datasets_of(uri: str) -> list[str]:
    """Return the names of the owner's datasets that the token can see, sorted."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    return sorted(found.id.split("/")[-1] for found in api.list_datasets(author=uri.rstrip("/").split("/")[-1]))


def check_writable(uri: str) -> None:
    """Raise `UserError` for a URI on the hub, which is for reading only."""
    if is_hub(uri):
        raise UserError(f"cannot write to {uri}: hf:// is read-only; expected a folder or a bucket")


def open_hub(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system and the path inside it. Errors: `UserError` if the URI names no repository."""
    parts = uri.removeprefix(SCHEME).split("/")
    repository = parts[1:3] if parts[0] in KINDS else parts[:2]
    if len(repository) < 2 or not all(repository):
        raise UserError(f"{uri}: expected {FORM}")
    fs = _file_system(os.environ.get("HF_ENDPOINT"))
    return fs, fs._strip_protocol(uri)


@lru_cache
def _file_system(endpoint: str | None) -> AbstractFileSystem:
    fs: AbstractFileSystem = fsspec.filesystem("hf", endpoint=endpoint or None, skip_instance_cache=True)
    library = logging.getLogger(LIBRARY)
    library.handlers[:], library.propagate = [_ToOurLog()], False
    return fs


class _ToOurLog(logging.Handler):
    """Passes the library's records, such as its warnings about retries, to our log instead of stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


def cat_ranges(fs: AbstractFileSystem, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return the bytes of several ranges (start, end) of a file, with one request for each, at once.

    The library's own method sends the requests one after the other, and reads 5 MiB more than each of them asks for."""
    with ThreadPoolExecutor(len(ranges)) as pool:
        return list(pool.map(lambda span: fs.cat_file(path, *span, cache_type="none"), ranges))


def advice(error: BaseException) -> str | None:
    """Return what is wrong and what to do, for a failure that a retry cannot change; `None` for other errors.

    A missing file is no such failure (see `is_missing`)."""
    cause = _cause(error)
    if cause is None or is_missing(error):
        return None
    kinds = [kind.__name__ for kind in type(cause).__mro__]
    found = next((text for name, text in ADVICE.items() if name in kinds), None)
    status = _status(cause)
    if found or status is None or status in TEMPORARY or not 400 <= status < 500:
        return found
    response: Any = getattr(cause, "response", None)
    if getattr(response, "history", None):
        # the storage behind the hub refused a signed address that has expired; the next attempt gets a new one
        return None
    if status == BAD_TOKEN:
        return "the hub asks for a valid token; set HF_TOKEN on every node"
    if status == FORBIDDEN:
        return "the token has no right to read it; set HF_TOKEN on every node to one that has"
    return first_line(cause)


def is_missing(error: BaseException) -> bool:
    """Return whether the error says that the repository has no such file."""
    cause = _cause(error)
    if cause is None:
        return False
    kinds = [kind.__name__ for kind in type(cause).__mro__]
    return "EntryNotFoundError" in kinds or (_status(cause) in MISSING and not any(name in kinds for name in ADVICE))


def seconds_until_reset(error: BaseException | None) -> float:
    """Return the seconds to wait after too many requests, as the hub says, at most `MAX_RESET`; 0 for other errors."""
    cause = _cause(error) if error else None
    headers = getattr(getattr(cause, "response", None), "headers", {})
    retry_after = str(headers.get("retry-after", ""))
    reset = _RESET.search(str(headers.get("ratelimit", "")))
    seconds = retry_after if retry_after.isdigit() else reset[1] if reset else "0"
    return min(float(seconds), MAX_RESET) if cause is not None and _status(cause) == 429 else 0.0


def _cause(error: BaseException) -> BaseException | None:
    """Return the library's error: the error itself, or the one behind a `FileNotFoundError` of its file system."""
    return next((one for one in (error, error.__cause__) if type(one).__module__.startswith(LIBRARY)), None)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
