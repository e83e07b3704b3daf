"""The address of a Ray cluster, and whether a cluster answers there."""

from __future__ import annotations

import os
import socket

from ray._private import services
from ray._private.authentication.authentication_token_setup import (
    ensure_token_if_auth_enabled,
    maybe_enable_token_auth_if_token_available,
)
from ray._raylet import AuthenticationTokenLoader, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RpcError

from orchestrator.config import ClusterConfig
from orchestrator.engine.ray_start import silenced_stderr
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
    """Check that a cluster answers at an address and accepts this process.

    Errors: `UserError` if nothing answers, if it is not a Ray cluster, or if it needs another token."""
    # Ray retries for minutes, and it writes the reason to stderr, which is silenced during that time
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{address} is the address to which jobs are submitted; expected HOST:PORT of the head node, or auto on a "
            "node of the cluster; to run as a job, use `ray job submit -- orchestrator ...`"
        )
    if address == "auto":
        # as `ray.init()` does for a cluster of this node, but not for a given address
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        address = services.find_bootstrap_address(None) or ""
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
    if not address.startswith("ray://"):
        _check_token(address)


def _check_token(address: str) -> None:
    # `ray.init()` takes these steps too. It retries without a limit if the cluster refuses the token
    try:
        with silenced_stderr():
            ensure_token_if_auth_enabled(create_token_if_missing=False)
            GcsClient(address=address)
    except AuthenticationError as error:
        raise UserError(_token_advice(address)) from error
    except RpcError as error:
        raise UserError(
            f"no Ray cluster answers at {address}, but another program may use this port; expected HOST:PORT of a "
            "running head node (cluster.address= or RAY_ADDRESS); the default port is 6379"
        ) from error


def _token_advice(address: str) -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        found, setting = "RAY_AUTH_MODE is not `token`", "RAY_AUTH_MODE=token and "
    elif AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        found, setting = "the token of this process is another one", ""
    else:
        found, setting = "this process has no token", ""
    return (
        f"the Ray cluster at {address} needs its authentication token: {found}. Set {setting}RAY_AUTH_TOKEN, or copy "
        "the token to ~/.ray/auth_token; `ray get-auth-token` prints it on the head node"
    )
