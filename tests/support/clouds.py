"""Google's and Azure's object stores on loopback: an emulator in this process, and Microsoft's Azurite in Node."""

from __future__ import annotations

import io
import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "box"
START_SECONDS = 30
ACCOUNT = "devstoreaccount1"
# the emulator's, which its documentation prints
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class _Gcs(RequestHandler):
    """Google's API; the emulator has no preconditions, of which `ifGenerationMatch=0` (only if it is not there) is
    added."""

    guard = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.rfile = io.BytesIO(body)
        asked = urlparse(self.path)
        query = parse_qs(asked.query)
        with self.guard:
            if query.get("ifGenerationMatch") == ["0"] and self._is_there(asked.path, query, body):
                self.send_error(HTTPStatus.PRECONDITION_FAILED)
                return
            super().do_POST()

    def _is_there(self, path: str, query: dict[str, list[str]], body: bytes) -> bool:
        # the name of an upload in one request is in the JSON that its body begins with
        if "name" in query:
            (name,) = query["name"]
        else:
            name = json.JSONDecoder().raw_decode(body[body.index(b"{") :].decode("latin-1"))[0]["name"]
        try:
            self.storage.get_file_obj(path.split("/b/")[1].split("/")[0], name)
        except NotFound:
            return False
        return True


@contextmanager
def gcs() -> Iterator[dict[str, str]]:
    """Google's store with an empty `BUCKET`; the environment in which clients reach it as `gs://`."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Gcs, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # the client asks what kind a bucket is by gRPC, which the emulator does not speak
    by_http = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "FSSPEC_GS_TOKEN": "anon"}
    try:
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_port}", **by_http}
    finally:
        server.shutdown()
        server.server_close()


def azurite() -> str | None:
    """The command that starts it, where `npm install --prefix VENV azurite` has put it, or on the path."""
    beside = Path(sys.prefix, "node_modules", ".bin", "azurite-blob")
    return str(beside) if beside.exists() else shutil.which("azurite-blob")


@contextmanager
def azure() -> Iterator[dict[str, str]]:
    """Azure's store, without a container; the environment in which clients reach it as `az://`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(azurite()), "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen([*command, "--blobPort", str(port)], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield {"AZURE_STORAGE_CONNECTION_STRING": connection(port, KEY)}
    finally:
        process.terminate()
        process.wait()


def connection(port: int, key: str) -> str:
    """Azure's connection string of the emulator."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    )


def _wait_for(port: int, process: subprocess.Popen[Any]) -> None:
    for _ in range(10 * START_SECONDS):
        assert process.poll() is None, "Azurite ended"
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("Azurite does not answer")
