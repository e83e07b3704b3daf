"""Reading and writing at places that fail now and then: tried again after growing pauses, then told in one line.

A client library tries again too, each in its own way and not all of its requests; a body that ends early some take for
the whole. So that every place behaves alike, a range that is read here has the length that was asked for; that of a
file read whole (`store.read`) is the client's to check."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from orchestrator.errors import UserError

# seconds; the pause before the n-th try is drawn from 0 to LEAST * 2**n, so that a thousand readers do not come back as
# one: half a minute in all, which most outages are shorter than
TRIES, LEAST, LONGEST = 8, 0.5, 20.0
# seconds after which no other try begins: Azure's client spends more than a minute on one where nobody answers
PATIENCE = 180.0
READ_AHEAD = 8 << 20
# what another try cannot change
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
# of botocore, google-auth and azure-core, none of which has to be there
NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "RefreshError",
    "ReauthFailError",
    "ClientAuthenticationError",
)
# of aiohttp, botocore, requests and http.client, for a body that ends early
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
    """A place that cannot be read or written: the message is one line, meant for the user."""


class CutOff(StoreError):
    """Fewer bytes than were asked for, time and again."""


class _Short(Exception):
    """Fewer bytes than were asked for."""


def tried(call: Callable[[], Found], uri: str, *, doing: str = "read") -> Found:
    """What `call` gives, which goes to a place on the network and may be done twice.

    Errors: `FileNotFoundError` and the like at once; `StoreError` for credentials that are missing or refused, and
    after `TRIES` tries or `PATIENCE`; `CutOff` where the last of them got too few bytes."""
    retrying = Retrying(
        stop=stop_after_attempt(TRIES) | stop_after_delay(PATIENCE),
        wait=wait_random_exponential(LEAST, LONGEST),
        retry=retry_if_exception(_passes),
        reraise=True,
    )
    try:
        return retrying(call)
    except Exception as error:
        tries = retrying.statistics["attempt_number"]
        if isinstance(error, _Short) or type(error).__name__ in ENDED_EARLY:
            told = f"cannot {doing} {uri}, tried {tries} times: {error}"
            raise CutOff(f"{told}; it changed since it was listed, or the network cuts it off") from error
        if _is_refusal(error):
            raise StoreError(
                f"not allowed to {doing} {uri}: {_reason(error)}; expected valid credentials where the cluster's "
                "processes find them; renewed, the same command goes on"
            ) from error
        if _is_missing(error):
            # the clients do not say which
            raise FileNotFoundError(errno.ENOENT, "no such file or bucket", uri) from error
        if isinstance(error, FINAL) and not isinstance(error, FileNotFoundError):
            raise
        raise StoreError(f"cannot {doing} {uri}, tried {tries} times: {_reason(error)}") from error


def read_range(fs: AbstractFileSystem, path: str, start: int, end: int) -> bytes:
    """The bytes from `start` up to `end` of a file there. Errors: as `tried`."""
    return read_ranges(fs, path, [(start, end)])[0]


def read_ranges(fs: AbstractFileSystem, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of several ranges (start, end) of a file, asked for at once. Errors: as `tried`."""

    def read() -> list[bytes]:
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        found = fs.cat_ranges([path] * len(ranges), starts, ends, on_error="raise")
        for (start, end), data in zip(ranges, found, strict=True):
            # fsspec before 2026.5 puts an error among the results, whatever `on_error` says
            if isinstance(data, BaseException):
                raise data
            if len(data) > end - start:
                raise StoreError(f"{fs.unstrip_protocol(path)}: its server does not answer requests for ranges")
            if len(data) < end - start:
                raise _Short(f"got {len(data):,} of {end - start:,} bytes at {start:,}")
        return found

    return tried(read, fs.unstrip_protocol(path))


class RemoteFile(AbstractBufferedFile):
    """A file there, to be read in any order; `read_ahead`: bytes a request asks for. Errors: as `tried`."""

    def __init__(self, fs: AbstractFileSystem, path: str, *, read_ahead: int = READ_AHEAD) -> None:
        uri = fs.unstrip_protocol(path)
        info: dict[str, Any] = tried(lambda: fs.info(path), uri)
        if info["size"] is None:
            raise StoreError(f"{uri}: its server does not say how long it is; expected a Content-Length")
        super().__init__(fs, path, "rb", block_size=read_ahead, cache_type="readahead", size=info["size"])

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.fs, self.path, start, end)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of S3's client came from, where it says so."""
    response = getattr(error.__cause__, "response", None)
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None


def _passes(error: BaseException) -> bool:
    if _is_missing(error) or _is_refusal(error):
        return False
    return isinstance(error, FileNotFoundError) or (isinstance(error, Exception) and not isinstance(error, FINAL))


def _is_missing(error: BaseException) -> bool:
    if _azure_status(error) in MISSING:
        return True
    # to fsspec's web file system whatever fails is missing; what the server answered is in the cause
    status = getattr(error.__cause__, "status", None)
    is_web = type(error.__cause__).__module__.startswith("aiohttp")
    return isinstance(error, FileNotFoundError) and (not is_web or status in MISSING)


def _is_refusal(error: BaseException) -> bool:
    # the answer to a HEAD has no body: of a token that has run out S3 says no more there than this
    is_bad_request = isinstance(error, OSError) and error.strerror == BAD_REQUEST
    # gcsfs has no class of its own for a 403
    is_forbidden = isinstance(error, OSError) and str(error).startswith(FORBIDDEN)
    is_named = isinstance(error, PermissionError) or type(error).__name__ in NO_CREDENTIALS
    return is_bad_request or is_forbidden or is_named or _azure_status(error) in REFUSED


def _azure_status(error: BaseException) -> int | None:
    # adlfs lets errors of Azure's client through as they are
    return getattr(error, "status_code", None) if type(error).__module__.startswith("azure.") else None


def _reason(error: BaseException) -> str:
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    # Azure's goes on with the whole answer
    text = text.partition(" RequestId:")[0]
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
