"""Commands as a user types them into a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

Shell = Callable[..., subprocess.CompletedProcess[str]]


def environment(**changes: str) -> dict[str, str]:
    """What a user's shell has, with this interpreter as `python`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "FSSPEC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": path, "COLUMNS": "160", **changes}


def in_shell(
    command: str,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: int = 500,
) -> subprocess.CompletedProcess[str]:
    """Types a command into a shell."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# two selections by an embedding, one after the other
GEOMETRY = (
    "selection.steps=[semdedup,dbp] selection.semdedup.embedding=lite selection.dbp.embedding=lite "
    "embedding.lite.image_size=32 selection.semdedup.clustering.k=4 selection.semdedup.eps=0.05 "
    "selection.dbp.clustering.k=5 selection.dbp.keep_fraction=0.8 selection.dbp.num_neighbours=2"
)


def geometry_command(tiny_conf: str, pool: str) -> str:
    """The command of `geometry_run` but for its places."""
    return (
        f"{tiny_command(tiny_conf, pool)} {GEOMETRY} finetune.after=semdedup training.samples=80 "
        "training.record_batches=true"
    )


def tiny_command(tiny_conf: str, pool: str) -> str:
    """The command of `tiny_run` but for its places."""
    return f"python -m orchestrator run {tiny_conf} source.uri={pool} evaluation.zero_shot.uri=zs.tar"
