"""Killed with SIGKILL and started again: a run finishes, and redoes only what was not committed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from commands import environment, in_shell, tiny_command
from pools import make_pairs, real_captions, write_table, write_tars

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENCE = 240.0


@contextmanager
def started(command: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own, with its own cluster; nothing of it survives the block."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver and to every process that it started, Ray's own sessions included."""
    family = descendants(process.pid)
    for one in [process, *family]:
        try:
            one.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below one; none when it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(seen: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """What `seen` gives once that is true; the command must still be going on then."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = seen()
        if found:
            assert process.poll() is None, "the command ended before it could be killed"
            return found
        assert process.poll() is None, "the command ended early"
        time.sleep(0.02)
    raise AssertionError("nothing to be seen")


def finished_parts(folder: Path, kind: str) -> dict[Path, int]:
    """Every finished part's files, with the time they were written."""
    marks = list((folder / "STORE" / kind).glob("*/parts/*.json"))
    files = [path for mark in marks for path in mark.parent.glob(f"{mark.stem}.*")]
    return {path: path.stat().st_mtime_ns for path in files if not path.name.endswith(".tmp")}


def test_killed_while_scoring(tmp_path: Path) -> None:
    captions = real_captions(6000) * 2
    write_table(tmp_path / "table", captions, num_files=2)
    select = (
        "python -m orchestrator select +exp=wfpp source=table source.uri=table source.part_rows=40 "
        "selection.wfpp.keep_fraction=0.5 cluster.scoring_actors=1 "
    )
    with started(f"{select} out=OUT store=STORE", tmp_path) as process:
        wait_for(lambda: len(finished_parts(tmp_path, "scores")) >= 5, process)
        kill(process)
    before = finished_parts(tmp_path, "scores")
    assert not list((tmp_path / "STORE" / "scores").glob("*/manifest.json")), "killed in the middle"
    others = {kind: finished_parts(tmp_path, kind) for kind in ("catalog", "word_counts", "words")}
    assert all(others.values())
    done = in_shell(f"{select} out=OUT store=STORE", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = finished_parts(tmp_path, "scores")
    assert len(after) > len(before)
    assert {path: after[path] for path in before} == before, "what was committed was not done again"
    for kind, parts in others.items():
        assert {path: path.stat().st_mtime_ns for path in parts} == parts, kind
    whole = in_shell(
        f"{select.replace('part_rows=40', 'part_rows=100000')} out=WHOLE store=STORE2 && "
        "python -m orchestrator export run=WHOLE to=whole.parquet && "
        "python -m orchestrator export run=OUT to=kept.parquet",
        cwd=tmp_path,
    )
    assert whole.returncode == 0, whole.stderr
    assert pq.read_table(tmp_path / "kept.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


@pytest.fixture
def training(tmp_path: Path, tiny_conf: str) -> str:
    """A command that trains for 300 steps of 16 pairs, with a checkpoint every 20."""
    write_tars(tmp_path / "pool", make_pairs(96), num_shards=3)
    command = tiny_command(tiny_conf, "pool").replace("evaluation.zero_shot.uri=zs.tar", "finetune.enabled=false")
    return f"{command} out=OUT store=STORE selection.steps=[all] training.epochs=50 training.checkpoint_every_steps=20"


STEPS, SAMPLES = 300, 4800


def committed(folder: Path) -> list[Path]:
    """Ray Train's checkpoints so far."""
    return list((folder / "STORE" / "pretrain").glob("*/ray/**/state.pt"))


def check_finished(folder: Path) -> list[dict[str, Any]]:
    """The curve of a run that ended as one that was never disturbed."""
    (phase,) = (folder / "STORE" / "pretrain").iterdir()
    curve = [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == list(range(1, STEPS + 1)), "every step once"
    report = json.loads((folder / "OUT" / "report.json").read_text())
    assert report["training"]["pretrain"]["samples_seen"] == SAMPLES
    assert (folder / "OUT" / "model" / "open_clip_model.safetensors").exists()
    return curve


def test_killed_while_training(training: str, tmp_path: Path) -> None:
    with started(training, tmp_path) as process:
        wait_for(lambda: len(committed(tmp_path)) >= 2, process)
        # a checkpoint counts once Ray Train's controller has taken it in
        time.sleep(5)
        assert process.poll() is None
        kill(process)
    (phase,) = (tmp_path / "STORE" / "pretrain").iterdir()
    before = [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]
    done = in_shell(training, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    curve = check_finished(tmp_path)
    kept = sum(old == new for old, new in zip(before, curve, strict=False))
    assert kept >= 20, "it went on from a checkpoint: the records before it are the very same"


def test_one_worker_killed_while_training(training: str, tmp_path: Path) -> None:
    with started(training, tmp_path) as process:
        wait_for(lambda: committed(tmp_path), process)
        workers = [one for one in descendants(process.pid) if is_training(one)]
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        assert process.wait(timeout=500) == 0, (tmp_path / "log.txt").read_text()
    check_finished(tmp_path)


def is_training(process: psutil.Process) -> bool:
    """Whether a process is one of Ray Train's workers: they name themselves."""
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
