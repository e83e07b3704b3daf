"""moto's S3 server on loopback, which answers some requests as a real store does on a bad day."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app

Kind = Literal["busy", "broken", "cut", "slow", "expired", "conflict", "unheard", "limited"]
ERRORS = {
    "busy": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "broken": ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "conflict": (
        "409 Conflict",
        "ConditionalRequestConflict",
        "Cannot perform the operation: a conflicting conditional operation is in progress.",
    ),
    "expired": ("400 Bad Request", "ExpiredToken", "The provided token has expired."),
}
STALL_SECONDS = 3.0


@dataclass
class Fault:
    """`times` of the requests that match are answered so; `every`: only each so many-th of them."""

    kind: Kind
    method: str = "GET"
    path: str = ""
    times: float = float("inf")
    every: int = 1
    seen: int = 0
    done: int = 0

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is one."""
        if method not in self.method.split() or self.path not in path or self.done >= self.times:
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.done += 1
        return True


class FaultyS3:
    """The server; `faults` may be changed while it runs."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """What `AWS_ENDPOINT_URL` is to be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Ends it."""
        self._server.shutdown()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        with self._lock:
            taken = [fault for fault in self.faults if fault.takes(environ["REQUEST_METHOD"], environ["PATH_INFO"])]
        if not taken:
            return self._moto(environ, start_response)
        kind = taken[0].kind
        if kind == "unheard":
            # done, though the client is told that it was not
            run_wsgi_app(self._moto, environ)
            kind = "broken"
        elif kind in ERRORS:
            # the body is read, or the client's connection breaks before it has the answer
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if kind in ERRORS:
            status, code, message = ERRORS[kind]
            told = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(told)))])
            # the answer to a HEAD has no body
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [told]
        found, status, headers = run_wsgi_app(self._moto, environ)
        body = b"".join(found)
        start_response(status, list(headers))
        return self._stalled(body) if kind == "slow" else [body[: len(body) // 2]]

    def _stalled(self, body: bytes) -> Iterable[bytes]:
        yield body[: len(body) // 2]
        time.sleep(STALL_SECONDS)
        yield body[len(body) // 2 :]
