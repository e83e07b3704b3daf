"""Artifacts: results of stages, found by a fingerprint of everything that determines them.

fingerprint = hash(kind, version of the algorithm, settings that matter, fingerprints of the inputs). It is known before
anything is computed, so `plan` can list what exists, and a second run or a trial of a sweep reuses it. An artifact is a
folder `STORE/KIND/FINGERPRINT`. Its manifest is written last: if the manifest exists, the artifact is complete."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.engine.artifact_files import damaged
from orchestrator.errors import first_line
from orchestrator.storage import files
from orchestrator.storage.files import StoreError

# hexadecimal digits, 64 bits
FINGERPRINT_CHARS = 16


def fingerprint(value: Any) -> str:
    """Return a hash of a JSON-like value that does not depend on the order of keys, the process or the machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_CHARS]


@dataclass(frozen=True)
class Artifact:
    """A folder in the store, and everything that determines its contents. It is complete if its manifest exists."""

    kind: str
    uri: str
    made_from: dict[str, Any]

    @classmethod
    def of(cls, store_uri: str, kind: str, *, version: int, **inputs: Any) -> Artifact:
        """Return the artifact of this code version and these inputs.

        `inputs`: JSON-like settings, and other artifacts, which count by their fingerprints. The names and values are
        hashed, so a changed name makes every stored artifact of the kind unusable."""
        made_from = {"kind": kind, "version": version}
        made_from |= {
            name: value.fingerprint if isinstance(value, Artifact) else value for name, value in inputs.items()
        }
        return cls(kind, files.join(store_uri, kind, fingerprint(made_from)), made_from)

    @property
    def fingerprint(self) -> str:
        """The hash that is the name of the folder."""
        return self.uri.rsplit("/", 1)[1]

    def path(self, *names: str) -> str:
        """Return a URI inside the artifact."""
        return files.join(self.uri, *names)

    def is_complete(self) -> bool:
        """Return whether the manifest exists."""
        return files.exists(self.path("manifest.json"))

    @property
    def manifest(self) -> dict[str, Any]:
        """The file that a stage writes last: `made_from`, `totals`, `seconds` and the summaries of `parts`."""
        return _manifest(self.path("manifest.json"))

    @property
    def totals(self) -> dict[str, Any]:
        """The sums over all parts, or other values of the whole artifact, which depend on the stage."""
        return self.manifest["totals"]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The summaries of the parts, in order."""
        return self.manifest["parts"]

    def publish(self, *, totals: dict[str, Any], parts: list[dict[str, Any]], seconds: float) -> None:
        """Write the manifest, which makes the artifact complete. `seconds`: wall time of the computation."""
        files.write_json(
            self.path("manifest.json"),
            {"made_from": self.made_from, "totals": totals, "parts": parts, "seconds": round(seconds, 3)},
        )


@lru_cache(maxsize=64)
def _manifest(uri: str) -> dict[str, Any]:
    # cached here and not in the artifact: an artifact is sent to every task, and its summaries may be large
    try:
        return files.read_json(uri)
    except FileNotFoundError as error:
        raise StoreError(f"no artifact at {uri}; expected the store of the run, unchanged; repeat the run") from error
    except ValueError as error:
        raise damaged(uri, f"expected JSON: {first_line(error)}") from error
