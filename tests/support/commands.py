"""Two ways to run a command of the command line.

`run_command` calls `orchestrator.cli.main` in this process, on the test session's Ray cluster and its warm workers. Use
it wherever the command's effect is tested. `run_process` starts a shell. Use it where the process itself is tested:
signals, environment variables, exit codes of `python -m`, how Ray starts, what is imported. Starting Python, torch and
Ray takes longer than most commands take."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO
from unittest import mock

Shell = Callable[..., subprocess.CompletedProcess[str]]
# how every command begins that `run_command` can run
PROGRAM = ["python", "-m", "orchestrator"]
# the width of tables, as on a wide terminal
COLUMNS = "160"


def run_command(commands: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m orchestrator VERB ...` in this process; what it prints, native libraries included, is captured.

    Several commands are joined by `&&`, as in a shell. They use the Ray cluster that this process is connected to.
    Working directory, environment, arguments, signal handlers and log handlers are as before when it returns. Errors:
    `ValueError` for anything else that only a shell understands."""
    runs = [_arguments(command) for command in commands.split(" && ")]
    with (
        tempfile.TemporaryFile("w+", buffering=1) as stdout,
        tempfile.TemporaryFile("w+", buffering=1) as stderr,
    ):
        with _as_in_a_process(cwd), _redirected("stdout", stdout), _redirected("stderr", stderr):
            # stops at the first one that fails
            code = next((code for code in map(_exit_code, runs) if code), 0)
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(commands, code, stdout.read(), stderr.read())


def _arguments(command: str) -> list[str]:
    words = shlex.split(command)
    if words[:3] != PROGRAM or {"&&", "|", ";", ">"} & set(words):
        raise ValueError(f"expected only a command that begins with {' '.join(PROGRAM)!r}, got {command!r}")
    return words[3:]


def run_process(
    command: str, *, cwd: Path, env: Mapping[str, str] | None = None, timeout: int = 500
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a shell; a command that needs a Ray cluster starts one, unless `env` names one."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment(**changes: str) -> dict[str, str]:
    """The environment of a user's shell, in which `python` is this interpreter."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "FSSPEC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": path, "COLUMNS": COLUMNS, **changes}


def _exit_code(arguments: list[str]) -> int:
    # the code with which Python would end the process
    from orchestrator.cli import main

    try:
        main(arguments)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001 Python prints the trace of any error and exits with 1
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _as_in_a_process(cwd: Path) -> Iterator[None]:
    before, argv = os.getcwd(), list(sys.argv)
    handlers, level = list(logging.root.handlers), logging.root.level
    os.chdir(cwd)
    # pytest's own handlers would keep log lines and warnings from stderr
    logging.root.handlers.clear()
    try:
        with mock.patch.dict(os.environ, {"COLUMNS": COLUMNS}), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        sys.argv = argv
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        os.chdir(before)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


@contextmanager
def _redirected(name: str, file: TextIO) -> Iterator[None]:
    # the descriptor too, on which native libraries and child processes write
    number = {"stdout": 1, "stderr": 2}[name]
    ours, kept = getattr(sys, name), os.dup(number)
    ours.flush()
    os.dup2(file.fileno(), number)
    setattr(sys, name, file)
    try:
        yield
    finally:
        file.flush()
        setattr(sys, name, ours)
        os.dup2(kept, number)
        os.close(kept)


# two selections by an embedding, one after the other
GEOMETRY = (
    "selection.steps=[semdedup,dbp] selection.semdedup.embedding=lite selection.dbp.embedding=lite "
    "embedding.lite.image_size=32 selection.semdedup.clustering.k=4 selection.semdedup.eps=0.05 "
    "selection.dbp.clustering.k=5 selection.dbp.keep_fraction=0.8 selection.dbp.num_neighbours=2"
)


def tiny_command(tiny_conf: str, pool: str) -> str:
    """The command of the fixture `tiny_run`, without `out` and `store`."""
    return f"python -m orchestrator run {tiny_conf} source.uri={pool} evaluation.zero_shot.uri=zs.tar"


def geometry_command(tiny_conf: str, pool: str) -> str:
    """The command of the fixture `geometry_run`, without `out` and `store`."""
    return (
        f"{tiny_command(tiny_conf, pool)} {GEOMETRY} finetune.after=semdedup training.samples=80 "
        "training.record_batches=true"
    )
