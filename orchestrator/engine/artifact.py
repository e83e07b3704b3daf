"""Artifacts are addressed by what made them.

fingerprint = hash(kind, version of the algorithm, settings that matter, fingerprints of the inputs), so it is known
before anything is computed: a plan can tell what is there, and a second run or a sweep's trial reuses it. An artifact
is a folder `STORE/KIND/FINGERPRINT`; its manifest is written last, so that its existence means complete."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.storage import files

FINGERPRINT_CHARS = 16


def fingerprint(value: Any) -> str:
    """A stable hash of a JSON-like value (keys sorted)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_CHARS]


@dataclass(frozen=True)
class Artifact:
    """A folder in the store and what made it; complete once its manifest exists."""

    kind: str
    uri: str
    made_from: dict[str, Any]

    @classmethod
    def of(cls, store_uri: str, kind: str, *, version: int, **inputs: Any) -> Artifact:
        """The artifact that `inputs` (settings, and artifacts for their fingerprints) make with this code version."""
        made_from = {"kind": kind, "version": version}
        made_from |= {
            name: value.fingerprint if isinstance(value, Artifact) else value for name, value in inputs.items()
        }
        return cls(kind, files.join(store_uri, kind, fingerprint(made_from)), made_from)

    @property
    def fingerprint(self) -> str:
        """The hash that names the artifact's folder."""
        return self.uri.rsplit("/", 1)[1]

    def path(self, *names: str) -> str:
        """A URI inside the artifact."""
        return files.join(self.uri, *names)

    def is_complete(self) -> bool:
        """Whether the manifest is there."""
        return files.exists(self.path("manifest.json"))

    @property
    def manifest(self) -> dict[str, Any]:
        """What the stage wrote last: `made_from`, `totals`, `seconds`, and one summary for each part."""
        return _manifest(self.path("manifest.json"))

    @property
    def totals(self) -> dict[str, Any]:
        """The sums over all parts, or what the stage put in their place."""
        return self.manifest["totals"]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """One summary for each part, in order."""
        return self.manifest["parts"]

    def publish(self, *, totals: dict[str, Any], parts: list[dict[str, Any]], seconds: float) -> None:
        """Writes the manifest: from now on the artifact is complete."""
        files.write_json(
            self.path("manifest.json"),
            {"made_from": self.made_from, "totals": totals, "parts": parts, "seconds": round(seconds, 3)},
        )


@lru_cache(maxsize=64)
def _manifest(uri: str) -> dict[str, Any]:
    # kept beside the artifact, not in it: an artifact travels to every task, the summaries of its parts need not
    return files.read_json(uri)
