"""SIGINT and SIGTERM end a command with one line and the signal's code; nothing is left; the next start continues."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import pipeline
from orchestrator.cli import main
from orchestrator.config import Config
from orchestrator.errors import UserError
from tests.support.commands import Shell, run_process
from tests.support.pools import real_captions, write_table, write_zero_shot
from tests.support.processes import called, descendants, started, wait_for
from tests.support.training_runs import STEPS, checkpoints, command_of, curve

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def _interruptible() -> Any:
    # a shell ignores SIGINT for commands in the background, and so do their child processes
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(verb: str, function: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a verb that does nothing but call the function; return its exit code."""
    monkeypatch.setattr(pipeline, verb, function)
    with pytest.raises(SystemExit) as exited:
        main([verb, "+exp=wfpp", "source.uri=x"])
    assert isinstance(exited.value.code, int)
    return exited.value.code


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("verb", ["run", "plan", "select"])
def test_errors_after_a_signal_are_its_consequence(
    verb: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def loses_an_actor(config: Config, **options: Any) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            raise RuntimeError("ActorUnavailableError: the actor is temporarily unavailable")

    assert ended(verb, loses_an_actor, monkeypatch) == CODES[number]
    advice = "" if verb == "plan" else "; run the same command again to resume"
    assert capfd.readouterr() == ("", f"orchestrator: stopped by {number.name}{advice}\n")


def test_a_lost_lease_keeps_its_message(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def loses_its_lease(config: Config, on_lost: Callable[[], None]) -> None:
        try:
            on_lost()
        finally:
            raise UserError("another run took over the lease")

    assert ended("select", loses_its_lease, monkeypatch) == 2
    assert capfd.readouterr().err == "orchestrator: another run took over the lease\n"


def handles_signals(pid: int) -> bool:
    """Whether a process has its own handler of SIGTERM, which Python alone has not."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the signals of a process from /proc")
@pytest.mark.parametrize("delay", [0.0, 0.2, 0.8])
@pytest.mark.parametrize("number", CODES)
def test_a_signal_while_python_still_imports_is_one_line(number: signal.Signals, delay: float, tmp_path: Path) -> None:
    write_table(tmp_path / "table", ["a dog"] * 9)
    command = "python -m orchestrator select +exp=wfpp source=table source.uri=table out=OUT store=STORE"
    with started(command, tmp_path) as process:
        # the shell becomes Python, so the process stays
        wait_for(lambda: handles_signals(process.pid), process)
        time.sleep(delay)
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == CODES[number], said(tmp_path)
    (line,) = said(tmp_path).splitlines()[-1:]
    assert line.startswith(f"orchestrator: stopped by {number.name}")
    assert delay or said(tmp_path) == f"orchestrator: stopped by {number.name}\n"
    assert "Traceback" not in said(tmp_path)


def stopped(
    command: str, folder: Path, env: dict[str, str], number: signal.Signals, seen: Callable[[], Any]
) -> subprocess.Popen[bytes]:
    """Send a signal to the process group of a command once something is seen; check that nothing of it is left."""
    with started(command, folder, env) as process:
        wait_for(seen, process)
        family = descendants(process.pid)
        os.killpg(process.pid, number)
        assert process.wait(timeout=120) == CODES[number], said(folder)
        _, left = psutil.wait_procs(family, timeout=20)
        assert not left
    *_, line = said(folder).splitlines()
    assert line.startswith("orchestrator: ")
    assert "Traceback" not in said(folder)
    assert [line for line in said(folder).splitlines() if line.startswith("orchestrator: ")] == [line]
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith("probe-")]
    return process


def said(folder: Path) -> str:
    return (folder / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_to_the_group_in_the_probe_of_a_plan(
    number: signal.Signals, forked_workers: dict[str, str], tiny_conf: str, tmp_path: Path
) -> None:
    command = command_of(tiny_conf, tmp_path).replace("orchestrator run", "orchestrator plan")
    # in the middle of training, of which the plan itself says nothing
    stopped(command, tmp_path, forked_workers, number, lambda: list(tmp_path.glob("STORE/probe-*/pretrain/*/*")))
    assert said(tmp_path).endswith(f"orchestrator: stopped by {number.name}\n")
    assert not list(tmp_path.glob("STORE/*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_to_the_group_while_scoring(forked_workers: dict[str, str], tmp_path: Path) -> None:
    write_table(tmp_path / "table", real_captions(1500), num_files=2)
    command = (
        "python -m orchestrator select +exp=wfpp source=table source.uri=table source.part_rows=20 out=OUT store=STORE "
        "cluster.scoring_actors=1"
    )
    marks = lambda: list(tmp_path.glob("STORE/scores/*/parts/*.json"))  # noqa: E731 a condition to wait for
    stopped(command, tmp_path, forked_workers, signal.SIGTERM, lambda: len(marks()) >= 3)
    before = {path: path.stat().st_mtime_ns for path in marks()}
    assert not list(tmp_path.glob("STORE/scores/*/manifest.json")), "stopped in the middle"
    assert not list(tmp_path.glob("STORE/*/*/lease.json"))
    done = run_process(command, cwd=tmp_path, env=forked_workers)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was committed was not done again"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigint_to_the_group_in_training_writes_a_checkpoint(
    forked_workers: dict[str, str], tiny_conf: str, tmp_path: Path
) -> None:
    command = f"{command_of(tiny_conf, tmp_path)} training.checkpoint_every_steps=10000 training.num_workers=1"
    events = "STORE/pretrain/*/tensorboard/*"
    stopped(command, tmp_path, forked_workers, signal.SIGINT, lambda: list(tmp_path.glob(events)))
    assert "stopped after step" in said(tmp_path).splitlines()[-1]
    (checkpoint,) = checkpoints(tmp_path)
    step = int(checkpoint.stem.removeprefix("step_"))
    logged = [record for record in curve(tmp_path) if record["step"] <= step]
    assert logged[-1]["step"] == step
    done = run_process(command, cwd=tmp_path, env=forked_workers)
    assert done.returncode == 0, done.stderr
    whole = curve(tmp_path)
    assert whole[: len(logged)] == logged, "what was trained was not trained again"
    assert [record["step"] for record in whole] == sorted({record["step"] for record in whole})
    assert whole[-1]["step"] == STEPS


def silent_report() -> list[psutil.Process]:
    """The processes of a `report` below this one that belong to its cluster: it works as soon as there are some."""
    drivers = called("orchestrator report", psutil.Process().children(recursive=True))
    return [one for driver in drivers for one in called("raylet", descendants(driver.pid))]


COMMANDS = {
    "evaluate": "checkpoint=RUN/model out=EVAL store=STORE evaluation.zero_shot.uri=zs.tar",
    "report": "run=RUN",
    "export": "run=RUN to=kept.parquet",
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("verb", COMMANDS)
def test_sigterm_to_the_group_in_other_verbs(
    verb: str, forked_workers: dict[str, str], run_command: Shell, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run / "OUT", tmp_path / "RUN")
    for path in tiny_run.glob("zs.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "RUN" / "report.html").unlink()
    command = f"python -m orchestrator {verb} {COMMANDS[verb]}"
    # `report` is silent until it is done; the others say when they begin
    seen = silent_report if verb == "report" else lambda: f"{verb} ..." in said(tmp_path)
    stopped(command, tmp_path, forked_workers, signal.SIGTERM, seen)
    assert not (tmp_path / "kept.parquet").exists()
    assert not (tmp_path / "RUN" / "report.html").exists()
    done = run_command(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = {"evaluate": "EVAL/report.json", "report": "RUN/report.html", "export": "kept.parquet"}[verb]
    assert (tmp_path / made).exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_to_the_group_in_a_sweep(forked_workers: dict[str, str], tiny_conf: str, tmp_path: Path) -> None:
    write_zero_shot(tmp_path)
    space = "'sweep.space={training.lr: {grid: [1e-3]}}' 'sweep.controls={full: false, random: false}'"
    command = command_of(tiny_conf, tmp_path).replace("orchestrator run", "orchestrator sweep")
    command += f" {space} evaluation.zero_shot.uri=zs.tar sweep.metric=zero_shot/top1 training.num_workers=1"
    stopped(command, tmp_path, forked_workers, signal.SIGTERM, lambda: list(tmp_path.glob("OUT/trials/*/run.log")))
    assert said(tmp_path).endswith("run the same command again with resume=true to resume\n")
