"""The file names of checkpoints, which give a phase's progress without loading torch."""

from __future__ import annotations

import re

from orchestrator.engine.artifact import Artifact
from orchestrator.storage import files

CHECKPOINT = re.compile(r"step_(\d{12})\.pt")


def steps_saved(artifact: Artifact) -> int:
    """Return the step of the newest checkpoint, 0 without one: a resumed phase skips the steps before it."""
    names = [name for name in files.names(artifact.path("checkpoints")) if CHECKPOINT.fullmatch(name)]
    return max((int(name.removeprefix("step_").removesuffix(".pt")) for name in names), default=0)
