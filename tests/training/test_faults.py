"""Training after failures of every kind: it resumes with exactly the next global batch, and gives the same losses.

Each test interrupts a run of 180 steps and compares it with an uninterrupted run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.commands import Shell
from tests.support.pools import Pair, make_pairs, write_tars
from tests.support.processes import called, descendants, kill, small_disk, started, wait_for
from tests.support.training_runs import (
    BATCH,
    CHECKPOINT_EVERY,
    NUM_PAIRS,
    STEPS,
    batches,
    checkpoints,
    command_of,
    curve,
    phase_folder,
    said,
    wait_for_checkpoints,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WORKER, RAYLET, HEAD = "RayTrainWorker", "raylet/raylet", "gcs_server"


@pytest.fixture(scope="module")
def uninterrupted(run_command: Shell, tiny_conf: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_command(command_of(tiny_conf, folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def command(tiny_conf: str, tmp_path: Path) -> str:
    """The command of the same run in the folder of the test."""
    return command_of(tiny_conf, tmp_path)


@pytest.fixture(scope="module")
def env(ray_cluster: str) -> dict[str, str]:
    """The environment that makes a command use the test session's cluster."""
    return {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def killed_once(
    forked_workers: dict[str, str], tiny_conf: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folder of a run whose driver and cluster were killed after its third checkpoint, and a copy of it."""
    folder, copy = (tmp_path_factory.mktemp(name) for name in ("killed", "copy"))
    with started(command_of(tiny_conf, folder), folder, forked_workers) as process:
        wait_for_checkpoints(3, folder, process)
        kill(process)
    assert 3 * CHECKPOINT_EVERY <= last_step(folder) < STEPS
    return folder, Path(shutil.copytree(folder, copy, dirs_exist_ok=True))


@pytest.fixture
def killed(killed_once: tuple[Path, Path]) -> Path:
    """That folder, as it was after the kill; always the same path, because the fingerprint of a pool has its URI."""
    folder, copy = killed_once
    shutil.rmtree(folder)
    return Path(shutil.copytree(copy, folder))


def check_same(folder: Path, uninterrupted: Path, *, num_losses: int = STEPS) -> None:
    """Check that every global batch and every loss equal those of the uninterrupted run, each step once."""
    ours, theirs = curve(folder), curve(uninterrupted)
    assert [record["step"] for record in ours] == list(range(1, STEPS + 1))
    assert batches(folder) == batches(uninterrupted)
    assert [record["loss"] for record in ours[:num_losses]] == pytest.approx(
        [record["loss"] for record in theirs[:num_losses]], abs=1e-5
    )
    assert (folder / "OUT" / "model" / "open_clip_model.safetensors").exists()
    assert not checkpoints(folder), "a finished phase has no checkpoints"


def resume(
    run_process: Shell, command: str, folder: Path, *, after: int, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command again; it must not repeat the steps up to `after`."""
    before = [record for record in curve(folder) if record["step"] <= after]
    done = run_process(command, cwd=folder, **how)
    assert done.returncode == 0, done.stderr
    # also the pace is equal: these are the records of the first attempt
    assert curve(folder)[: len(before)] == before
    return done


def last_step(folder: Path) -> int:
    """Return the step of the newest checkpoint."""
    return int(checkpoints(folder)[-1].stem.removeprefix("step_"))


def test_without_interruption_every_pair_comes_once_per_epoch(uninterrupted: Path) -> None:
    keys = list(batches(uninterrupted).values())
    assert [len(batch) for batch in keys] == [BATCH] * STEPS
    an_epoch = NUM_PAIRS // BATCH
    for start in range(0, STEPS, an_epoch):
        epoch = sorted(key for batch in keys[start : start + an_epoch] for key in batch)
        assert len(set(epoch)) == len(epoch) == NUM_PAIRS


def test_training_continues_after_a_worker_is_killed(
    command: str, tmp_path: Path, env: dict[str, str], uninterrupted: Path
) -> None:
    with started(command, tmp_path, env) as process:
        wait_for_checkpoints(2, tmp_path, process)
        workers = called(WORKER, descendants(os.getpid()))
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        assert process.wait(timeout=500) == 0, said(tmp_path)
    check_same(tmp_path, uninterrupted)


@pytest.mark.long
def test_training_resumes_after_the_head_of_the_cluster_is_killed(
    command: str, tmp_path: Path, run_command: Shell, uninterrupted: Path
) -> None:
    # by default a driver waits a minute for the head node to come back
    with started(command, tmp_path, {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}) as process:
        wait_for_checkpoints(2, tmp_path, process)
        family = descendants(process.pid)
        for one in called(HEAD, family) + called(RAYLET, family):
            one.kill()
        assert process.wait(timeout=300) not in (0, None)
    resume(run_command, command, tmp_path, after=last_step(tmp_path))
    check_same(tmp_path, uninterrupted)


def test_training_resumes_from_the_previous_checkpoint_with_more_workers(
    command: str, killed: Path, run_command: Shell, uninterrupted: Path
) -> None:
    before, newest = checkpoints(killed)[-2:]
    os.truncate(newest, newest.stat().st_size // 2)
    step = int(before.stem.removeprefix("step_"))
    done = resume(run_command, f"{command} training.num_workers=4", killed, after=step)
    assert "using the one before it" in done.stdout
    assert newest.name in done.stdout
    check_same(killed, uninterrupted, num_losses=step + 20)


@pytest.mark.long
def test_training_starts_again_after_a_shard_has_changed(command: str, killed: Path, run_command: Shell) -> None:
    before = phase_folder(killed)
    pairs = make_pairs(NUM_PAIRS)
    pairs[50] = Pair(pairs[50].key, "another caption", pairs[49].image)
    write_tars(killed / "pool", pairs, num_shards=3)
    done = run_command(f"{command} training.epochs=1", cwd=killed)
    assert done.returncode == 0, done.stderr
    (after,) = set((killed / "STORE" / "pretrain").iterdir()) - {before}
    assert len((after / "metrics.jsonl").read_text().splitlines()) == NUM_PAIRS // BATCH, (
        "training starts at the first step"
    )


@pytest.mark.long
def test_training_resumes_after_a_missing_shard_a_full_disk_and_a_sigterm(
    command: str, tmp_path: Path, run_command: Shell, env: dict[str, str], uninterrupted: Path
) -> None:
    with small_disk(tmp_path / "STORE", "64m") as disk:
        without_a_shard(command, tmp_path, env)
        on_a_full_disk(command, tmp_path, env, disk / "ballast")
        stopped_by_sigterm(command, tmp_path, env)
        resume(run_command, command, tmp_path, after=last_step(tmp_path))
        check_same(tmp_path, uninterrupted)


def without_a_shard(command: str, folder: Path, env: dict[str, str]) -> None:
    shard, away = folder / "pool" / "00001.tar", folder / "away.tar"
    with started(command, folder, env) as process:
        wait_for_checkpoints(1, folder, process)
        shard.rename(away)
        assert process.wait(timeout=300) == 2, said(folder)
    (line,) = [line for line in said(folder).splitlines() if line.startswith("orchestrator: ")]
    assert "00001.tar is missing" in line
    assert "Traceback" not in line
    assert len(line) < 300
    away.rename(shard)


def on_a_full_disk(command: str, folder: Path, env: dict[str, str], ballast: Path) -> None:
    before = last_step(folder)
    with started(command, folder, env) as process:
        wait_for(lambda: last_step(folder) > before, process)
        free = os.statvfs(ballast.parent)
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize))
        assert process.wait(timeout=300) == 2, said(folder)
    assert "No space left on device" in said(folder).splitlines()[-1]
    assert last_step(folder) > before, "the checkpoints before it are complete"
    ballast.unlink()


def num_sessions(folder: Path) -> int:
    """Return how often training has started: each start writes an event file."""
    return len(list(folder.glob("STORE/pretrain/*/tensorboard/*")))


def stopped_by_sigterm(command: str, folder: Path, env: dict[str, str]) -> None:
    before, sessions = last_step(folder), num_sessions(folder)
    with started(f"{command} training.checkpoint_every_steps=10000", folder, env) as process:
        wait_for(lambda: num_sessions(folder) > sessions, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143, said(folder)
    assert "stopped after step" in said(folder)
    assert last_step(folder) > before


def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint(
    command: str, tmp_path: Path, run_command: Shell
) -> None:
    done = run_command(f"{command} training.lr=1e30 training.log_every_steps=7", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "not finite at step" in line
    assert "bad_batch.json" in line
    assert not checkpoints(tmp_path), "a state that is not finite is not saved"


def test_no_worker_process_is_left(ray_cluster: str) -> None:
    ours = psutil.Process().children(recursive=True)
    assert not [one for one in called(WORKER, ours) if one.status() != psutil.STATUS_ZOMBIE]
