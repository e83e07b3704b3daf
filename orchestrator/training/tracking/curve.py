"""The training curve: a JSON-lines file with one record per logged step."""

from __future__ import annotations

import json
import time
from typing import Any

from orchestrator.engine.artifact_files import checked
from orchestrator.storage import files

FLUSH_SECONDS = 10.0
# the share of the time for writing the curve: all ranks wait for it, and the whole file is written each time
FLUSH_SHARE = 0.01


class Curve:
    """The metrics of a training phase, one record per logged step; the whole file is written, as any store allows."""

    def __init__(self, uri: str, *, first_step: int):
        """Continue with the records up to `first_step`: later ones belong to steps that are trained again."""
        self.uri = files.join(uri, "metrics.jsonl")
        lines = files.read(self.uri).splitlines() if files.exists(self.uri) else []
        with checked(self.uri):
            self.records = [record for record in map(json.loads, lines) if record["step"] <= first_step]
        self.encoded, self.num_encoded = bytearray(), 0
        self.flushed, self.flush_seconds = time.monotonic(), 0.0

    def log(self, record: dict[str, Any]) -> None:
        """Add a record. The file is written at most every `FLUSH_SECONDS`, and less often if writing is slow.

        Writing takes at most `FLUSH_SHARE` of the time, estimated from the last write."""
        self.records.append(record)
        if time.monotonic() - self.flushed > max(FLUSH_SECONDS, self.flush_seconds / FLUSH_SHARE):
            self.flush()

    def flush(self) -> None:
        """Write the file."""
        began = time.monotonic()
        # earlier records stay encoded: in a long phase they are nearly all of the file
        new = self.records[self.num_encoded :]
        self.encoded += "".join(json.dumps(record) + "\n" for record in new).encode()
        self.num_encoded = len(self.records)
        files.write(self.uri, bytes(self.encoded))
        self.flushed = time.monotonic()
        self.flush_seconds = self.flushed - began
