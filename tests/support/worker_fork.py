"""Ray workers that are forked from one process in which the libraries are loaded.

Each Ray actor, embedding worker and training worker is a process. Starting it costs two imports of Ray, then torch,
timm and open_clip: about ten seconds of CPU time, which most tests spend little more than. `forked_workers` starts one
server that imports them once. Inside the block, the clusters that this process starts use this file in place of Ray's
`setup_worker.py`: it asks the server for a fork, which then runs Ray's own `default_worker.py`. Clusters that other
processes start are as in production."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ADDRESS = "ORCHESTRATOR_TESTS_FORK_SERVER"
CONTEXT = "--serialized-runtime-env-context="
# threads do not outlive a fork
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
READY_SECONDS = 120.0
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


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Inside the block, `ray.init` in this process starts clusters with forked workers."""
    from ray._private.parameter import RayParams

    original = RayParams.update_if_absent

    def with_our_setup(params: RayParams, **settings: Any) -> None:
        original(params, **{**settings, "setup_worker_path": __file__})

    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "socket")
        env = {**os.environ, **ONE_THREAD}
        server = subprocess.Popen([sys.executable, __file__, "--serve", address], env=env)
        os.environ[ADDRESS] = address
        _wait_for(address)
        RayParams.update_if_absent = with_our_setup
        try:
            yield
        finally:
            RayParams.update_if_absent = original
            del os.environ[ADDRESS]
            server.kill()
            server.wait()


def serve(address: str) -> None:
    """Fork a process for each request until this one is killed."""
    for module in MODULES:
        __import__(module)
    assert "ray" not in sys.modules
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(address)
        server.listen(64)
        clients: dict[int, socket.socket] = {}
        server.settimeout(0.05)
        while True:
            _report_ended(clients)
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            client.settimeout(None)
            message, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 3)
            pid = os.fork()
            if pid == 0:
                server.close()
                for other in clients.values():
                    other.close()
                client.close()
                _become(json.loads(message), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            clients[pid] = client


def _report_ended(clients: dict[int, socket.socket]) -> None:
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        client = clients.pop(pid)
        with contextlib.suppress(OSError):
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        client.close()


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["argv"]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 as Python does with any error
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ask(arguments: list[str]) -> int:
    """Ask the server for a worker with Ray's arguments and wait until it ends; the exit code."""
    env, argv = dict(os.environ), []
    for argument in arguments:
        if argument.startswith(CONTEXT):
            env |= json.loads(argument.removeprefix(CONTEXT) or "{}").get("env_vars") or {}
        elif not argument.startswith("--language="):
            argv.append(argument)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(os.environ[ADDRESS])
        request = json.dumps({"argv": argv, "env": env, "cwd": os.getcwd()})
        socket.send_fds(client, [request.encode()], [0, 1, 2])
        return int(client.recv(64) or b"1")


def _wait_for(address: str) -> None:
    end = time.monotonic() + READY_SECONDS
    while not os.path.exists(address):
        if time.monotonic() > end:
            raise TimeoutError("the libraries were not loaded in time")
        time.sleep(0.05)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1:]))
