"""Artifacts, named after everything that they are made from.

fingerprint = hash(kind, version of the algorithm, settings that matter, fingerprints of the inputs). It is known before
anything is computed: a plan shows which artifacts exist, and other runs and trials reuse them. An artifact is a folder
`STORE/KIND/FINGERPRINT`. Its manifest is written last, so an artifact with a manifest is complete."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.storage import files

FINGERPRINT_CHARS = 16


def fingerprint(value: Any) -> str:
    """Return a stable hash of a JSON-like value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_CHARS]


@dataclass(frozen=True)
class Artifact:
    """A folder in the store, and what it is made from; complete once its manifest exists."""

    kind: str
    uri: str
    made_from: dict[str, Any]

    @classmethod
    def of(cls, store_uri: str, kind: str, *, version: int, **inputs: Any) -> Artifact:
        """Return the artifact made from `inputs`: settings, and artifacts, which count by their fingerprints."""
        made_from = {"kind": kind, "version": version}
        made_from |= {
            name: value.fingerprint if isinstance(value, Artifact) else value for name, value in inputs.items()
        }
        return cls(kind, files.join(store_uri, kind, fingerprint(made_from)), made_from)

    @property
    def fingerprint(self) -> str:
        """Return the hash that names the folder."""
        return self.uri.rsplit("/", 1)[1]

    def path(self, *names: str) -> str:
        """Return a URI in the folder."""
        return files.join(self.uri, *names)

    def is_complete(self) -> bool:
        """Return whether the manifest exists."""
        return files.exists(self.path("manifest.json"))

    @property
    def manifest(self) -> dict[str, Any]:
        """Return what the stage wrote last: `made_from`, `totals`, `seconds`, and one summary per part."""
        return _manifest(self.path("manifest.json"))

    @property
    def totals(self) -> dict[str, Any]:
        """Return the sums over all parts, or what the stage wrote in their place."""
        return self.manifest["totals"]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Return one summary per part, in order."""
        return self.manifest["parts"]

    def publish(self, *, totals: dict[str, Any], parts: list[dict[str, Any]], seconds: float) -> None:
        """Write the manifest, which completes the artifact."""
        files.write_json(
            self.path("manifest.json"),
            {"made_from": self.made_from, "totals": totals, "parts": parts, "seconds": round(seconds, 3)},
        )


@lru_cache(maxsize=64)
def _manifest(uri: str) -> dict[str, Any]:
    # cached here and not in the artifact: every task gets the artifact, and most do not need the summaries
    return files.read_json(uri)
