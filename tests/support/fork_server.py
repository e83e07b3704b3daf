"""Processes that are forked from one in which the libraries are loaded.

Each Ray actor and each training worker is a process. To start it, Python imports torch, timm and open_clip: about ten
seconds of CPU time, which is more than the rest of most tests takes. `fork_server` starts one process that imports them
once. `python fork_server.py SCRIPT ARGUMENTS...` asks it for a fork that runs the script, with the same result as
`python SCRIPT ARGUMENTS...`. The fork ends with the process that asked for it.

Inside `forked_ray_workers`, the workers of clusters that this process starts are such forks: this file replaces Ray's
`setup_worker.py`, and the script is Ray's own `default_worker.py`. The same holds for clusters of other processes, if
their environment has the variables `FORKED_WORKERS`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, __file__]
ADDRESS = "ORCHESTRATOR_TESTS_FORK_SERVER"
# environment of a process in which Ray starts forked workers; needs `fork_server`
FORKED_WORKERS = {
    "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parent / "forking"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
}
# Ray's argument with the environment variables of a worker
CONTEXT = "--serialized-runtime-env-context="
# all that workers import and that takes long. Not Ray: its core reads the environment once, when it is loaded
MODULES = (
    "pandas",
    "polars",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "orchestrator.clip.encoders",
    "orchestrator.clip.model",
    "orchestrator.clip.train_step",
)
# threads do not outlive a fork
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
READY_SECONDS = 300.0
# prctl's PR_SET_PDEATHSIG
SIGNAL_AT_PARENTS_END = 1


@contextlib.contextmanager
def fork_server() -> Iterator[None]:
    """Run the server for this process and its children while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "socket")
        server = subprocess.Popen([*COMMAND, "--serve", address], env={**os.environ, **ONE_THREAD})
        try:
            _wait_for(address, server)
            os.environ[ADDRESS] = address
            yield
        finally:
            os.environ.pop(ADDRESS, None)
            server.kill()
            server.wait()


@contextlib.contextmanager
def forked_ray_workers() -> Iterator[None]:
    """Make `ray.init` of this process start clusters with forked workers; needs `fork_server`."""
    from ray._private import ray_constants

    original, ray_constants.SETUP_WORKER_FILENAME = ray_constants.SETUP_WORKER_FILENAME, __file__
    try:
        yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = original


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_SECONDS
    while not os.path.exists(address):
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the fork server did not start (exit code {server.poll()})")
        time.sleep(0.05)


def serve(address: str) -> None:
    """Fork a process for each request, until this process or its parent ends."""
    _end_with_parent()
    for module in MODULES:
        __import__(module)
    assert "ray" not in sys.modules
    # pages that the collector does not write stay shared
    gc.collect()
    gc.freeze()
    clients: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(address)
        server.listen(64)
        while True:
            _report_ended(clients)
            ready, _, _ = select.select([server, *clients.values()], [], [], 0.05)
            if server in ready:
                client, _ = server.accept()
                clients[_forked(server, client, clients)] = client
            for pid, client in clients.items():
                # a client never sends again: its connection is readable when it has ended
                if client in ready:
                    os.kill(pid, signal.SIGKILL)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_END, signal.SIGKILL)


def _forked(server: socket.socket, client: socket.socket, others: dict[int, socket.socket]) -> int:
    # the process id of a fork that runs the client's script
    message, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 3)
    pid = os.fork()
    if pid == 0:
        _end_with_parent()
        # Ray kills the process group of a worker that has ended
        os.setpgid(0, 0)
        for one in (server, client, *others.values()):
            one.close()
        _run_script(json.loads(message), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def _report_ended(clients: dict[int, socket.socket]) -> None:
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        client = clients.pop(pid)
        with contextlib.suppress(OSError):
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        client.close()


def _run_script(request: dict[str, Any], descriptors: list[int]) -> None:
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv, code = request["argv"], 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 Python prints the trace of any error and exits with 1
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ask(arguments: list[str]) -> int:
    """Have the server run a script, wait until it ends, and return its exit code."""
    env, argv = dict(os.environ), []
    for argument in arguments:
        if argument.startswith(CONTEXT):
            env |= json.loads(argument.removeprefix(CONTEXT) or "{}").get("env_vars") or {}
        elif not argument.startswith("--language="):
            argv.append(argument)
    if argv[0] == "-m":
        # Ray's client server, which is no worker
        os.execve(sys.executable, [sys.executable, *argv], env)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(os.environ[ADDRESS])
        request = json.dumps({"argv": argv, "env": env, "cwd": os.getcwd()})
        socket.send_fds(client, [request.encode()], [0, 1, 2])
        code = int(client.recv(64) or b"1")
    # a process that a signal ended
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1:]))
