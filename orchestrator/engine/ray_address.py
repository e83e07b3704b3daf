"""The address of a Ray cluster, and whether a cluster answers there."""

from __future__ import annotations

import os
import socket

from ray._private import services

from orchestrator.config import ClusterConfig
from orchestrator.errors import UserError

# time limit for the head node to accept a connection, and to answer
CONNECT_SECONDS = 10.0


def address_of(config: ClusterConfig) -> str:
    """Return the address of the cluster to use: HOST:PORT, `auto` for that of this node, or `local` for a new one."""
    # the order of `ray.init()`. A number of CPUs asks for a new cluster, because it cannot apply to an existing one
    given = config.address or os.environ.get("RAY_ADDRESS")
    return given or ("auto" if config.num_cpus is None and _is_on_a_node() else "local")


def _is_on_a_node() -> bool:
    # the address file of `ray start` outlives the cluster, and another program may use the port by now. So a process of
    # that cluster must run on this machine too
    recorded = services.find_bootstrap_address(None)
    return bool(recorded) and recorded in services.find_gcs_addresses()


def check_answers(address: str) -> None:
    """Check that a cluster answers at an address. Errors: `UserError` if not."""
    # Ray retries for minutes, and it writes the reason to stderr, which is silenced during that time
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{address} is the address to which jobs are submitted; expected HOST:PORT of the head node, or auto on a "
            "node of the cluster; to run as a job, use `ray job submit -- orchestrator ...`"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); expected HOST:PORT of a running head "
            "node (cluster.address= or RAY_ADDRESS), or no address to start a cluster on this machine"
        ) from error
