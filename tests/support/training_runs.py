"""A training run that is long enough to be interrupted, and helpers to read its curve, batches and checkpoints."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.support.commands import tiny_command
from tests.support.pools import make_pairs, write_tars
from tests.support.processes import wait_for

BATCH, EPOCHS, NUM_PAIRS, CHECKPOINT_EVERY = 16, 30, 96, 12
SAMPLES = EPOCHS * NUM_PAIRS
STEPS = SAMPLES // BATCH


def command_of(tiny_conf: str, folder: Path) -> str:
    """Return a command that trains for 180 steps of 16 pairs with two workers, with a checkpoint every 12 steps.

    The pool is written to `folder` if it is not there."""
    if not (folder / "pool").exists():
        write_tars(folder / "pool", make_pairs(NUM_PAIRS), num_shards=3)
    command = tiny_command(tiny_conf, "pool").replace("evaluation.zero_shot.uri=zs.tar", "finetune.enabled=false")
    return (
        f"{command} out=OUT store=STORE selection.steps=[all] training.epochs={EPOCHS} training.precision=fp32 "
        f"training.checkpoint_every_steps={CHECKPOINT_EVERY} training.record_batches=true training.num_workers=2"
    )


def phase_folder(folder: Path) -> Path:
    """Return the folder of the training phase of the run in `folder`."""
    (phase,) = (folder / "STORE" / "pretrain").iterdir()
    return phase


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted((folder / "STORE" / "pretrain").glob("*/checkpoints/step_*.pt"))


def curve(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the logged steps."""
    return [json.loads(line) for line in (phase_folder(folder) / "metrics.jsonl").read_text().splitlines()]


def batches(folder: Path) -> dict[int, list[str]]:
    """Return the keys of every global batch, by step."""
    table = pq.read_table(phase_folder(folder) / "batches")
    found: dict[int, list[str]] = {}
    for step, key in zip(table["step"].to_pylist(), table["key"].to_pylist(), strict=True):
        found.setdefault(step, []).append(key)
    return {step: sorted(keys) for step, keys in sorted(found.items())}


def wait_for_checkpoints(count: int, folder: Path, process: subprocess.Popen[bytes]) -> list[Path]:
    """Wait until the run has written `count` checkpoints (only the newest two stay)."""
    wanted = f"step_{count * CHECKPOINT_EVERY:012d}.pt"
    return wait_for(lambda: [path for path in checkpoints(folder) if path.name >= wanted], process)


def said(folder: Path) -> str:
    """Return the output of the interrupted command."""
    return (folder / "log.txt").read_text()
