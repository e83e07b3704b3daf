"""A Ray cluster of several nodes on this machine. Each node is a `ray start` process that a test can kill."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

from tests.support.commands import environment
from tests.support.processes import kill

PATIENCE = 90.0
STORE_BYTES = 200_000_000
# settings for nodes that are created and reached over the network, which local nodes do not need
UNUSED: dict[str, Any] = {
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LocalCluster:
    """A running cluster.

    `nodes` holds the process of each node; the first is the head. Each node has `cpus` CPUs; the head has `head_cpus`
    if that is set."""

    folder: Path
    cpus: int
    head_cpus: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Return the `RAY_ADDRESS` of a driver."""
        return f"127.0.0.1:{self.port}"

    @property
    def job_env(self) -> dict[str, str]:
        """Return the environment variables that make `ray job` use this cluster."""
        return {"RAY_ADDRESS": f"http://127.0.0.1:{self.dashboard_port}", "RAY_AUTH_MODE": "token"}

    @property
    def driver_env(self) -> dict[str, str]:
        """Return the environment variables that make a command use this cluster."""
        return {**self.env, "RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}

    def start_head(self, *, dashboard: bool = False, more: str = "") -> None:
        """Start the head. `more` holds further arguments of `ray start`."""
        # a short path: the length of the path of a Unix socket is limited
        temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self.env["RAY_TMPDIR"] = temporary
        # nodes that share a few cores can answer late; a dead node refuses the connection at once
        self.env["RAY_health_check_timeout_ms"] = "60000"
        shown = f"--dashboard-port={self.dashboard_port}" if dashboard else ""
        size = self._size(self._head_size)
        dashboards = f"--include-dashboard={str(dashboard).lower()} {shown}"
        self._start(f"ray start --head --port={self.port} {dashboards} {size} {more}")

    def start_autoscaler(self, *, max_nodes: int) -> None:
        """Start the head and Ray's autoscaler, which adds up to `max_nodes` nodes on demand."""
        of_head, of_node = ({"CPU": cpus} for cpus in (self._head_size, self.cpus))
        config = {
            "cluster_name": "grows",
            "max_workers": max_nodes,
            "upscaling_speed": 10.0,
            "provider": {
                # not Ray's name for this provider, because that needs a file that the wheel of Ray does not have
                "type": "external",
                "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
                "launch_multiple": True,
                # all nodes share one address and need no set-up
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "gcs_address": f"{get_node_ip_address()}:{self.port}",
            },
            **UNUSED,
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            "available_node_types": {
                FAKE_HEAD_NODE_TYPE: {"resources": of_head, "node_config": {}, "max_workers": 0},
                "cpu": {"resources": of_node, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
            },
        }
        (self.folder / "autoscaling.json").write_text(json.dumps(config))
        self.env |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        self.start_head(more=f"--autoscaling-config={self.folder / 'autoscaling.json'}")

    @property
    def _head_size(self) -> int:
        return self.cpus if self.head_cpus is None else self.head_cpus

    def sessions(self) -> list[Path]:
        """Return the session folders of all Ray clusters that were started with the environment of this one."""
        return [path for path in Path(self.env["RAY_TMPDIR"]).glob("ray/session_*") if not path.is_symlink()]

    def add_node(self, *, before: str = "", gpus: int = 0, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start another node.

        Args:
            before: Shell commands to run first, in a new mount namespace of the node.
            gpus: Number of GPUs that Ray counts; they need not exist.
            wait: Wait until the node is up."""
        asked = f"--num-gpus={gpus}" if gpus else ""
        command = f"ray start --address={self.address} {asked} {self._size(self.cpus)}"
        self._start(f"unshare -m sh -c '{before}; exec {command}'" if before else command, wait=wait)
        return self.nodes[-1]

    def _size(self, cpus: int) -> str:
        # nodes on one machine must not share the port of the job agent
        agent = f"--dashboard-agent-listen-port={free_port()}"
        return f"--num-cpus={cpus} --object-store-memory={STORE_BYTES} {agent} --block --disable-usage-stats"

    def _start(self, command: str, *, wait: bool = True) -> None:
        # number the log by the logs that exist, because a test may have removed killed nodes from `nodes`
        log_path = self.folder / f"node{len(list(self.folder.glob('node*.log')))}.log"
        with log_path.open("ab") as log:
            self.nodes.append(
                subprocess.Popen(
                    ["sh", "-c", f"exec {command}"],
                    stdout=log,
                    stderr=log,
                    env=environment(**self.env, RAY_AUTH_MODE="token"),
                    start_new_session=True,
                )
            )
        if wait:
            self._wait_until_up(self.nodes[-1], log_path)

    def _wait_until_up(self, node: subprocess.Popen[bytes], log_path: Path) -> None:
        end = time.monotonic() + PATIENCE
        while "Ray runtime started" not in log_path.read_text():
            assert node.poll() is None, log_path.read_text()
            assert time.monotonic() < end, log_path.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill all processes of all nodes."""
        for node in reversed(self.nodes):
            kill(node)
        shutil.rmtree(self.env.get("RAY_TMPDIR", ""), ignore_errors=True)


@contextmanager
def local_cluster(
    folder: Path,
    *,
    nodes: int,
    cpus: int = 3,
    head_cpus: int | None = None,
    dashboard: bool = False,
    env: dict[str, str] | None = None,
) -> Iterator[LocalCluster]:
    """Start a cluster of `nodes` nodes, including the head. It stops at the end of the block."""
    cluster = LocalCluster(folder, cpus, head_cpus, dict(env or {}))
    try:
        cluster.start_head(dashboard=dashboard)
        for _ in range(nodes - 1):
            cluster.add_node()
        yield cluster
    finally:
        cluster.stop()
