"""The Hugging Face Hub on loopback: the requests of `HfFileSystem`, answered as the hub answers them.

A second server is the storage behind it: large files are redirected there, with a signature in the address. Faults are
those of `faulty_s3`, and "limited": too many requests."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from tests.support.faulty_s3 import Fault

# the token of an account with access to everything, and of one with access to what is public
TOKEN, OTHER_TOKEN = "hf_" + "a" * 34, "hf_" + "b" * 34
SIGNATURE = "signed-by-the-hub"
# entries of a listing in one answer; the hub has 1,000
PAGE = 3
# larger files are redirected
LARGE = 1000
RESET_SECONDS = 1


@dataclass
class Repository:
    """A dataset: the files of each revision, by path."""

    revisions: dict[str, dict[str, bytes]]
    private: bool = False
    gated: bool = False


@dataclass
class Seen:
    """A request: the path with its query, the token if it had one, and its range (first and last byte)."""

    path: str
    token: str | None
    range: str | None


@dataclass
class Answer:
    """A status with headers and a body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def error(status: int, code: str | None, message: str) -> Answer:
    """An error as the hub sends it: the code and the message are in headers."""
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return Answer(status, json.dumps({"error": message}).encode(), headers)


class Hub:
    """The servers; `repositories` (by OWNER/NAME) and `faults` may be changed while they run."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self._servers = [_Server(("127.0.0.1", 0), partial(_Handler, self, answer)) for answer in (hub, cdn)]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def add(self, folder: Path, name: str, *, revision: str = "main", **kind: bool) -> str:
        """Add the files below a folder as a dataset; its URI."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories.setdefault(name, Repository({}, **kind)).revisions[revision] = files
        return f"hf://datasets/{name}"

    def stop(self) -> None:
        """Stop the servers."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # clients may close their connections
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, answer: Any, *args: Any) -> None:
        self.hub, self.answer = hub, answer
        super().__init__(*args)

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.seen.append(Seen(self.path, self.headers.get("Authorization"), self.headers.get("Range")))
            taken = next((one.kind for one in self.hub.faults if one.takes(self.command, unquote(self.path))), None)
        if taken == "busy":
            found = error(503, None, "Service Unavailable")
        elif taken == "broken":
            found = error(500, None, "Internal Error")
        elif taken == "limited":
            found = error(429, None, "Too Many Requests")
            found.headers = {**found.headers, "RateLimit": f'"api";r=0;t={RESET_SECONDS}'}
        else:
            found = self.answer(self.hub, self.path, self.headers, body)
        self.send_response(found.status)
        for name, value in found.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.body)))
        self.end_headers()
        if taken == "cut":
            self.close_connection = True
            found.body = found.body[: len(found.body) // 2]
        if self.command != "HEAD":
            self.wfile.write(found.body)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def cdn(hub: Hub, path: str, headers: Mapping[str, str], _: bytes) -> Answer:
    """The storage: it serves signed addresses, in ranges, and refuses a token that was not meant for it."""
    where = urlparse(path)
    if parse_qs(where.query).get("Signature") != [SIGNATURE] or "Authorization" in headers:
        return error(403, None, "Access Denied")
    digest = where.path.rsplit("/", 1)[-1]
    files = (data for one in hub.repositories.values() for files in one.revisions.values() for data in files.values())
    return _part(next(data for data in files if hashlib.sha256(data).hexdigest() == digest), headers)


def hub(hub: Hub, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """The hub: `/api/datasets/OWNER/NAME[/revision|tree|paths-info]` and `/datasets/OWNER/NAME/resolve`."""
    where, token = urlparse(path), headers.get("Authorization", "").removeprefix("Bearer ")
    words = where.path.strip("/").removeprefix("api/").split("/")
    if token and token not in (TOKEN, OTHER_TOKEN):
        return error(401, None, "Invalid credentials in Authorization header")
    if words == ["datasets"]:
        return _json([{"id": name} for name in hub.repositories if name.split("/")[0] in where.query])
    repository = hub.repositories.get("/".join(words[1:3])) if words[0] == "datasets" else None
    if repository is None or (repository.private and token != TOKEN):
        # without a token, the hub does not say whether there is such a repository
        return error(404 if token else 401, "RepoNotFound", "Repository not found")
    verb, revision = words[3] if len(words) > 3 else "", unquote(words[4]) if len(words) > 4 else "main"
    files = repository.revisions.get(revision)
    if files is None:
        return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    name = unquote("/".join(words[5:]))
    if verb in ("", "revision"):
        return _json({"id": "/".join(words[1:3]), "sha": _digest(repr(sorted(files)).encode()), "siblings": []})
    if verb == "tree":
        return _tree(hub, where.path, parse_qs(where.query), _entries(files), name)
    if verb == "paths-info":
        wanted = parse_qs(body.decode()).get("paths", [])
        return _json([entry for entry in _entries(files) if entry["path"] in wanted])
    if repository.gated and token != TOKEN:
        return error(403 if token else 401, "GatedRepo", "Access to this dataset is restricted.")
    if name not in files:
        return error(404, "EntryNotFound", "Entry not found")
    if len(files[name]) < LARGE:
        return _part(files[name], headers)
    digest = hashlib.sha256(files[name]).hexdigest()
    return Answer(302, headers={"Location": f"{hub.storage_url}/lfs/{digest}?Signature={SIGNATURE}"})


def _tree(hub: Hub, path: str, query: dict[str, list[str]], entries: list[dict[str, Any]], folder: str) -> Answer:
    prefix = f"{folder}/" if folder else ""
    below = [entry for entry in entries if entry["path"].startswith(prefix)]
    if folder and not below:
        return error(404, "EntryNotFound", f"{folder} does not exist")
    if query.get("recursive", [""])[0].lower() != "true":
        below = [entry for entry in below if "/" not in entry["path"][len(prefix) :]]
    first = int(query.get("cursor", ["0"])[0])
    answer = _json(below[first : first + PAGE])
    if first + PAGE < len(below):
        more = f"recursive={query['recursive'][0]}&cursor={first + PAGE}"
        answer.headers = {**answer.headers, "Link": f'<{hub.url}{path}?{more}>; rel="next"'}
    return answer


def _entries(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    folders = {name[:i] for name in files for i, letter in enumerate(name) if letter == "/"}
    found: list[dict[str, Any]] = [
        {"type": "directory", "oid": _digest(name.encode()), "size": 0, "path": name} for name in folders
    ]
    for name, data in files.items():
        entry = {"type": "file", "oid": _digest(data), "size": len(data), "path": name}
        if len(data) >= LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        found.append(entry)
    return sorted(found, key=lambda entry: entry["path"])


def _digest(data: bytes) -> str:
    # git's name of a blob
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _part(data: bytes, headers: Mapping[str, str]) -> Answer:
    asked = headers.get("Range")
    if not asked:
        return Answer(200, data, {"Accept-Ranges": "bytes"})
    first, last = asked.removeprefix("bytes=").split("-")
    if int(first) >= len(data):
        return Answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
    part = data[int(first) : int(last) + 1 if last else None]
    return Answer(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"})
