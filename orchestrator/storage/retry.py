"""Reads and writes over a network, which fail now and then: retried after growing pauses, then reported in one line.

Client libraries retry too, but each in a different way and not for all requests, and some take a body that ends early
for a whole one. Here every store behaves alike: a range has the length that was requested. The client checks the length
of a file that is read whole (`files.read`)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
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

logger = logging.getLogger(__name__)

# seconds; the pause before try n is random, from 0 to LEAST * 2**n, so a thousand readers do not return at the same
# moment. About half a minute in all: most outages are shorter
TRIES, LEAST, LONGEST = 8, 0.5, 20.0
# no try starts after so many seconds: without an answer, Azure's client spends more than a minute on each
PATIENCE = 180.0
READ_AHEAD = 8 << 20
# errors that another try cannot change
FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NotImplementedError,
    UserError,
    TypeError,
)
# class names of botocore, google-auth and azure-core, which need not be installed
NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "RefreshError",
    "ReauthFailError",
    "ClientAuthenticationError",
)
# class names of aiohttp, botocore, requests and http.client for a body that ends early
ENDED_EARLY = (
    "ClientPayloadError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseStreamingError",
    "ChunkedEncodingError",
)
BAD_REQUEST, FORBIDDEN = "Bad Request", "Forbidden"
REFUSED, MISSING = (401, 403), (404, 410)
Found = TypeVar("Found")


class StoreError(UserError, OSError):
    """A URI that cannot be read or written. The message is one line for the user."""


class CutOff(StoreError):
    """Fewer bytes than requested, in every try."""


class _Short(Exception):
    """Fewer bytes than requested, in one try."""


def tried(call: Callable[[], Found], uri: str, *, doing: str = "read") -> Found:
    """Return the result of `call`, a request over the network that is retried and must be safe to repeat.

    Errors: `FileNotFoundError` and other final errors at once; `StoreError` for missing or refused credentials, and
    after `TRIES` tries or `PATIENCE` seconds; `CutOff` if the last try got too few bytes."""
    retrying = Retrying(
        stop=stop_after_attempt(TRIES) | stop_after_delay(PATIENCE),
        wait=wait_random_exponential(LEAST, LONGEST),
        retry=retry_if_exception(_may_pass),
        before_sleep=partial(_log_retry, uri, doing),
        reraise=True,
    )
    try:
        return retrying(call)
    except Exception as error:
        tries = retrying.statistics["attempt_number"]
        if isinstance(error, _Short) or type(error).__name__ in ENDED_EARLY:
            raise CutOff(
                f"cannot {doing} {uri}, tried {tries} times: {error}; it changed since it was listed, or the network "
                "cuts it off"
            ) from error
        if _is_refusal(error):
            raise StoreError(
                f"not allowed to {doing} {uri}: {_reason(error)}; expected valid credentials where the cluster's "
                "processes find them; renew them and run the same command again to resume"
            ) from error
        if _is_missing(error):
            # clients do not tell whether the file or the bucket is missing
            raise FileNotFoundError(errno.ENOENT, "no such file or bucket", uri) from error
        if isinstance(error, FINAL) and not isinstance(error, FileNotFoundError):
            raise
        raise StoreError(f"cannot {doing} {uri}, tried {tries} times: {_reason(error)}") from error


def _log_retry(uri: str, doing: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    logger.warning(
        "cannot %s %s (try %d of %d): %s; retrying in %.1f s",
        doing,
        uri,
        state.attempt_number,
        TRIES,
        _reason(error) if error else "",
        pause,
    )


def read_range(fs: AbstractFileSystem, path: str, start: int, end: int) -> bytes:
    """Return the bytes from `start` up to `end` of a remote file. Errors: as `tried`."""
    return read_ranges(fs, path, [(start, end)])[0]


def read_ranges(fs: AbstractFileSystem, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Return the bytes of several ranges (start, end) of a remote file, requested together. Errors: as `tried`."""

    def read() -> list[bytes]:
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        found = fs.cat_ranges([path] * len(ranges), starts, ends, on_error="raise")
        for (start, end), data in zip(ranges, found, strict=True):
            # fsspec before 2026.5 returns errors among the results even with `on_error="raise"`
            if isinstance(data, BaseException):
                raise data
            if len(data) > end - start:
                raise StoreError(f"{fs.unstrip_protocol(path)}: its server does not answer requests for ranges")
            if len(data) < end - start:
                raise _Short(f"got {len(data):,} of {end - start:,} bytes at {start:,}")
        return found

    return tried(read, fs.unstrip_protocol(path))


class RemoteFile(AbstractBufferedFile):
    """A remote file that can be read in any order; `read_ahead`: the bytes of one request. Errors: as `tried`."""

    def __init__(self, fs: AbstractFileSystem, path: str, *, read_ahead: int = READ_AHEAD) -> None:
        uri = fs.unstrip_protocol(path)
        info: dict[str, Any] = tried(lambda: fs.info(path), uri)
        if info["size"] is None:
            raise StoreError(f"{uri}: its server does not tell its length; expected a Content-Length header")
        super().__init__(fs, path, "rb", block_size=read_ahead, cache_type="readahead", size=info["size"])

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.fs, self.path, start, end)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of S3's client; None if it has none."""
    response = getattr(error.__cause__, "response", None)
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None


def _may_pass(error: BaseException) -> bool:
    # whether another try may succeed
    if _is_missing(error) or _is_refusal(error):
        return False
    return isinstance(error, FileNotFoundError) or (isinstance(error, Exception) and not isinstance(error, FINAL))


def _is_missing(error: BaseException) -> bool:
    if _azure_status(error) in MISSING:
        return True
    # fsspec's web file system reports every failure as a missing file; the server's answer is in the cause
    status = getattr(error.__cause__, "status", None)
    is_web = type(error.__cause__).__module__.startswith("aiohttp")
    return isinstance(error, FileNotFoundError) and (not is_web or status in MISSING)


def _is_refusal(error: BaseException) -> bool:
    # the answer to a HEAD request has no body: for an expired token S3 answers only this
    is_bad_request = isinstance(error, OSError) and error.strerror == BAD_REQUEST
    # gcsfs has no class for a 403
    is_forbidden = isinstance(error, OSError) and str(error).startswith(FORBIDDEN)
    is_named = isinstance(error, PermissionError) or type(error).__name__ in NO_CREDENTIALS
    return is_bad_request or is_forbidden or is_named or _azure_status(error) in REFUSED


def _azure_status(error: BaseException) -> int | None:
    # adlfs passes errors of Azure's client on unchanged
    return getattr(error, "status_code", None) if type(error).__module__.startswith("azure.") else None


def _reason(error: BaseException) -> str:
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    # Azure appends the whole answer
    text = text.partition(" RequestId:")[0]
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
