"""Reads from a web server that fails now and then, or does not support ranges."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.storage import files, retry
from orchestrator.storage.ranges import read_spans
from orchestrator.storage.retry import StoreError

BODY = bytes(range(256)) * 400


class Web(BaseHTTPRequestHandler):
    """A web server with one file. `failures`: number of requests that get a 503; `ranges`: range requests work."""

    failures, ranges, sized = 0, True, True

    def do_HEAD(self) -> None:
        self.answer(has_body=False)

    def do_GET(self) -> None:
        self.answer(has_body=True)

    def answer(self, *, has_body: bool) -> None:
        server = type(self)
        if server.failures:
            server.failures -= 1
            self.send_error(503)
            return
        if not self.path.endswith("a.bin"):
            self.send_error(404)
            return
        asked, body = self.headers.get("Range"), BODY
        if asked and self.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            body = BODY[int(first) : int(last) + 1]
        self.send_response(206 if asked and self.ranges else 200)
        if self.sized:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Web]]]:
    """The address of a web server, and the class that holds its settings."""
    monkeypatch.setattr(retry, "PAUSE_UNIT", 0.01)
    handler = type("OneWeb", (Web,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


def test_requests_to_a_busy_web_server_are_retried(web: tuple[str, type[Web]]) -> None:
    uri, server = web
    for read in (
        lambda: files.read(f"{uri}/a.bin"),
        lambda: b"".join(read_spans(f"{uri}/a.bin", [(0, len(BODY))])),
        lambda: files.open_file(f"{uri}/a.bin").read(),
    ):
        server.failures = 3
        assert read() == BODY
    server.failures = 3
    assert files.exists(f"{uri}/a.bin")
    assert not files.exists(f"{uri}/b.bin")
    with pytest.raises(FileNotFoundError, match=r"b\.bin"):
        files.read(f"{uri}/b.bin")
    server.failures = 1000
    with pytest.raises(StoreError, match=r"cannot read .* after 8 attempts"):
        files.exists(f"{uri}/a.bin")


def test_a_web_server_without_ranges_or_sizes_is_an_error(web: tuple[str, type[Web]]) -> None:
    uri, server = web
    server.ranges = False
    with pytest.raises(StoreError, match="does not support range requests"):
        list(read_spans(f"{uri}/a.bin", [(3, 10)]))
    server.sized = False
    with pytest.raises(StoreError, match="does not send the size of the file"):
        files.open_file(f"{uri}/a.bin")
