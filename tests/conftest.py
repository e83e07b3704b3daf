"""One Ray cluster a session, shared with the commands that tests type; the pools and the run that several tests read."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pools import make_pairs, write_experiment, write_tars, write_zero_shot

from orchestrator import cluster
from orchestrator.config import ClusterConfig

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def ray_cluster() -> str:
    """The session's cluster; its address."""
    import ray

    cluster.connect(ClusterConfig(num_cpus=6))
    address: str = ray.get_runtime_context().gcs_address
    return address


def environment(**changes: str) -> dict[str, str]:
    """What a user's shell has, with this interpreter as `python`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "FSSPEC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": path, "COLUMNS": "160", **changes}


def in_shell(command: str, *, cwd: Path, env: Mapping[str, str] | None = None, timeout: int = 500,
             ) -> subprocess.CompletedProcess[str]:
    """Types a command into a shell."""
    return subprocess.run(["sh", "-c", command], cwd=cwd, env=environment(**(env or {})), capture_output=True, text=True,
                          timeout=timeout, check=False)


@pytest.fixture(scope="session")
def shell() -> Shell:
    """Types a command; what needs a cluster starts its own."""
    return in_shell


@pytest.fixture(scope="session")
def typed(ray_cluster: str) -> Shell:
    """Types a command that uses the session's cluster, as users with RAY_ADDRESS set do."""

    def run(command: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
        return in_shell(command, cwd=cwd, env={"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "token"})

    return run


@pytest.fixture(scope="session")
def tiny_conf(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`--config-dir ...` with the experiment `tiny`, quoted for a shell."""
    folder = write_experiment(tmp_path_factory.mktemp("conf") / "conf")
    return f"--config-dir {shlex.quote(str(folder))} +exp=tiny"


@pytest.fixture(scope="session")
def tar_pool(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 whole pairs in three tars."""
    return write_tars(tmp_path_factory.mktemp("tars") / "pool", make_pairs(96), num_shards=3)


@pytest.fixture(scope="session")
def tiny_run(typed: Shell, tiny_conf: str, tar_pool: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a whole `run` of the experiment `tiny` was typed: `OUT`, `STORE`, `zs.tar`, `stdout.txt`."""
    folder = tmp_path_factory.mktemp("run")
    write_zero_shot(folder)
    done = typed(f"{tiny_command(tiny_conf, tar_pool)} out=OUT store=STORE", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def tiny_command(tiny_conf: str, pool: str) -> str:
    """The command of `tiny_run` but for its places."""
    return f"python -m orchestrator run {tiny_conf} source.uri={pool} evaluation.zero_shot.uri=zs.tar"
