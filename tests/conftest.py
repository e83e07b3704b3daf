"""One Ray cluster a session, shared with the commands that tests type; the pools and the run that several read."""

from __future__ import annotations

import os
import shlex
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from orchestrator.config import ClusterConfig
from tests.support.commands import Shell, geometry_command, run_command, run_process, tiny_command
from tests.support.fork_server import FORKED_WORKERS, fork_server, forked_ray_workers
from tests.support.pools import make_pairs, write_experiment, write_tars, write_zero_shot

# `make test-all` takes the thorough one
settings.register_profile("fast", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say that the slow tests were left out; the skipped ones and their reasons follow."""
    if terminalreporter.config.option.markexpr == "not slow":
        terminalreporter.write_line("the slow tests were not selected; `make test-all` runs them")


@pytest.fixture(scope="session")
def forks() -> Iterator[None]:
    """The session's fork server."""
    with fork_server():
        yield


@pytest.fixture(scope="session")
def forked_workers(forks: None) -> dict[str, str]:
    """The environment of commands that start a cluster fast: its workers are forks of the session's server."""
    return FORKED_WORKERS


@pytest.fixture(scope="session")
def ray_cluster(forks: None) -> Iterator[str]:
    """The session's cluster; its address."""
    import ray

    from orchestrator.engine.ray_cluster import connect

    with forked_ray_workers():
        connect(ClusterConfig(num_cpus=6))
        address: str = ray.get_runtime_context().gcs_address
        yield address
        ray.shutdown()


@pytest.fixture(scope="session", name="run_process")
def process_fixture() -> Shell:
    """`run_process`: a command in a shell, which starts a cluster when it needs one."""
    return run_process


@pytest.fixture(scope="session", name="run_command")
def command_fixture(ray_cluster: str) -> Shell:
    """`run_command`: a command in this process, on the session's cluster."""
    return run_command


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
def tiny_run(run_command: Shell, tiny_conf: str, tar_pool: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a whole `run` of the experiment `tiny` was typed: `OUT`, `STORE`, `zs.tar`, `stdout.txt`."""
    folder = tmp_path_factory.mktemp("run")
    write_zero_shot(folder)
    done = run_command(f"{tiny_command(tiny_conf, tar_pool)} out=OUT store=STORE training.num_workers=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def geometry_run(run_command: Shell, tiny_conf: str, tar_pool: str, tiny_run: Path) -> Path:
    """The folder of `tiny_run`, with a run `GEO` beside its own: deduplicated, pruned by DBP, fine-tuned on the
    deduplicated pool."""
    done = run_command(f"{geometry_command(tiny_conf, tar_pool)} out=GEO store=STORE", cwd=tiny_run)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a run that goes well says nothing there"
    return tiny_run


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a server on loopback, which this process reaches as `s3://`."""
    import fsspec
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    # all servers of a process share their buckets
    name = f"bucket-{uuid.uuid4().hex}"
    fs.mkdir(name)
    # an instance made before has another endpoint, or none
    fs.clear_instance_cache()
    yield f"s3://{name}"
    fs.clear_instance_cache()
    server.stop()
