"""Retries of reads and writes over a network, with growing pauses. The last failure becomes an error of one line.

The client libraries retry too, but each in its own way and not for all requests, and some accept a body that ends
early. A range that is read here always has the requested length. The length of a file that is read in one piece
(`files.read`) is checked by the client library."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from orchestrator.errors import UserError
from orchestrator.storage import hub

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 8
# seconds: the n-th pause is random, from 0 to PAUSE_UNIT * 2**(n - 1), so a thousand readers do not retry at the same
# moment. All pauses together take about half a minute; most outages are shorter
PAUSE_UNIT, MAX_PAUSE = 0.5, 20.0
# seconds after which no attempt starts: Azure's client alone waits for more than a minute for a dead server
MAX_SECONDS = 180.0
# bytes per request when a remote file is read in order
READ_AHEAD = 8 << 20
# errors that a retry cannot change
PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NotImplementedError,
    UserError,
    TypeError,
)
# classes of botocore, google-auth and azure-core, by name because none of them has to be installed
NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "RefreshError",
    "ReauthFailError",
    "ClientAuthenticationError",
)
# classes of aiohttp, botocore, requests and http.client for a body that ends early
ENDED_EARLY = (
    "ClientPayloadError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseStreamingError",
    "ChunkedEncodingError",
)
# httpx has one class for this and for a server that does not answer
ENDED_EARLY_TEXT = "without sending complete message body"
BAD_REQUEST, FORBIDDEN = "Bad Request", "Forbidden"
# HTTP status codes
REFUSED, MISSING = (401, 403), (404, 410)
# in a URI: user and password, and the query, which may hold a signature
_SECRET = re.compile(r"(?<=://)[^/\s@]+@|\?\S+")
Found = TypeVar("Found")


class StoreError(UserError, OSError):
    """A file or folder that cannot be read or written. The message is one line for the user."""


class CutOff(StoreError):
    """A read that gave fewer bytes than requested, in every attempt."""


class _ShortRead(Exception):
    """One read that gave fewer bytes than requested."""


def tried(call: Callable[[], Found], uri: str, *, doing: str = "read") -> Found:
    """Return the result of `call`, a request over the network that may run more than once, with retries.

    Errors: `FileNotFoundError` and other permanent errors at once; `StoreError` at once for missing or refused
    credentials, and after `MAX_ATTEMPTS` attempts or `MAX_SECONDS`; `CutOff` if the last attempt gave too few bytes."""
    retrying = Retrying(
        stop=stop_after_attempt(MAX_ATTEMPTS) | stop_after_delay(MAX_SECONDS),
        wait=_pause,
        retry=retry_if_exception(_is_transient),
        before_sleep=_LogRetry(uri, doing),
        reraise=True,
    )
    try:
        return retrying(call)
    except Exception as error:
        failed = f"cannot {doing} {uri} after {retrying.statistics['attempt_number']} attempts"
        if isinstance(error, _ShortRead) or _ended_early(error):
            raise CutOff(
                f"{failed}: {error}; the file changed since it was listed, or the network closes connections early"
            ) from error
        if hint := hub.advice(error):
            raise StoreError(f"cannot {doing} {uri}: {hint}") from error
        if _is_refusal(error):
            raise StoreError(
                f"not allowed to {doing} {uri}: {_reason(error)}; expected valid credentials on every node; "
                "refresh the credentials and run the same command again to resume"
            ) from error
        if _is_missing(error):
            # the clients do not say whether the file or the bucket is missing
            raise FileNotFoundError(errno.ENOENT, "no such file or bucket", uri) from error
        if isinstance(error, PERMANENT) and not isinstance(error, FileNotFoundError):
            raise
        raise StoreError(f"{failed}: {_reason(error)}") from error


def _pause(state: RetryCallState) -> float:
    """Return the seconds before the next attempt: random, or as long as the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    return max(wait_random_exponential(PAUSE_UNIT, MAX_PAUSE)(state), hub.seconds_until_reset(error))


@dataclass(frozen=True)
class _LogRetry:
    """Logs a failed attempt before the pause that follows it."""

    uri: str
    doing: str

    def __call__(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning(
            "cannot %s %s: attempt %d of %d failed: %s; retry in %.1f s",
            self.doing,
            _SECRET.sub("***", self.uri),
            state.attempt_number,
            MAX_ATTEMPTS,
            _reason(error) if error else "",
            state.upcoming_sleep,
        )


def read_range(fs: AbstractFileSystem, path: str, start: int, end: int) -> bytes:
    """Return the bytes from `start` up to `end` of a remote file. Errors: as `tried`."""
    return read_ranges(fs, path, [(start, end)])[0]


def read_ranges(fs: AbstractFileSystem, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Return the bytes of several ranges (start, end) of a remote file, requested at once. Errors: as `tried`."""

    uri = fs.unstrip_protocol(path)

    def read() -> list[bytes]:
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        if hub.is_hub(uri):
            found = hub.cat_ranges(fs, path, ranges)
        else:
            found = fs.cat_ranges([path] * len(ranges), starts, ends, on_error="raise")
        for (start, end), data in zip(ranges, found, strict=True):
            # fsspec before 2026.5 returns errors among the results and ignores `on_error`
            if isinstance(data, BaseException):
                raise data
            if len(data) > end - start:
                raise StoreError(f"{uri}: the server does not support range requests")
            if len(data) < end - start:
                raise _ShortRead(f"got {len(data):,} of {end - start:,} bytes at {start:,}")
        return found

    return tried(read, uri)


class RemoteFile(AbstractBufferedFile):
    """A remote file for reads at any position. `read_ahead`: bytes per request. Errors: as `tried`."""

    def __init__(self, fs: AbstractFileSystem, path: str, *, read_ahead: int = READ_AHEAD) -> None:
        uri = fs.unstrip_protocol(path)
        info: dict[str, Any] = tried(lambda: fs.info(path), uri)
        if info["size"] is None:
            raise StoreError(f"{uri}: the server does not send the size of the file; expected a Content-Length header")
        super().__init__(fs, path, "rb", block_size=read_ahead, cache_type="readahead", size=info["size"])

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.fs, self.path, start, end)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of S3's client, if the error holds it."""
    response = getattr(error.__cause__, "response", None)
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None


def _is_transient(error: BaseException) -> bool:
    if _is_missing(error) or _is_refusal(error) or hub.advice(error):
        return False
    return isinstance(error, FileNotFoundError) or (isinstance(error, Exception) and not isinstance(error, PERMANENT))


def _is_missing(error: BaseException) -> bool:
    if _azure_status(error) in MISSING or hub.is_missing(error):
        return True
    if hub.advice(error):
        # a missing or private repository is not a missing file
        return False
    # fsspec's HTTP file system raises FileNotFoundError for every failure; the server's status is in the cause
    status = getattr(error.__cause__, "status", None)
    is_web = type(error.__cause__).__module__.startswith("aiohttp")
    return isinstance(error, FileNotFoundError) and (not is_web or status in MISSING)


def _ended_early(error: BaseException) -> bool:
    return type(error).__name__ in ENDED_EARLY or ENDED_EARLY_TEXT in str(error)


def _is_refusal(error: BaseException) -> bool:
    # a response to HEAD has no body: for an expired token, S3 sends only this phrase
    is_bad_request = isinstance(error, OSError) and error.strerror == BAD_REQUEST
    # gcsfs has no error class for status 403
    is_forbidden = isinstance(error, OSError) and str(error).startswith(FORBIDDEN)
    is_named = isinstance(error, PermissionError) or type(error).__name__ in NO_CREDENTIALS
    return is_bad_request or is_forbidden or is_named or _azure_status(error) in REFUSED


def _azure_status(error: BaseException) -> int | None:
    # adlfs does not convert the errors of Azure's client
    return getattr(error, "status_code", None) if type(error).__module__.startswith("azure.") else None


def _reason(error: BaseException) -> str:
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    # the rest of a message of Azure's client is the whole response
    text = _SECRET.sub("***", text.partition(" RequestId:")[0])
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
