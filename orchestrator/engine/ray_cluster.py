"""The Ray cluster of a command: the one in the configuration, the one this machine belongs to, or one started here; how
large it is or may grow, and whether its nodes share folders."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.config import ClusterConfig
from orchestrator.errors import UserError, first_line
from orchestrator.storage import files

logger = logging.getLogger(__name__)

# Train's controller and a decode task must fit beside the workers: 2 workers on 2 logical CPUs would wait for ever
LOCAL_MIN_CPUS = 4
LOCAL_MAX_WORKERS = 2
# the variable that Ray sets for the process of a job, and Ray's folder for copies of working directories
JOB, COPIES = "RAY_JOB_CONFIG_JSON_ENV_VAR", "working_dir_files"
# how far an autoscaler may grow the cluster; 0: the cluster keeps its size. Ray knows only the nodes that are up, so
# `connect` notes the limits in Ray Data's context, which lives as long as the process's connection
MAX_CPUS, MAX_GPUS = "orchestrator.scales_to_cpus", "orchestrator.scales_to_gpus"
# until a head accepts a connection
CONNECT_SECONDS = 10.0
# until all nodes answer whether they see a folder
ANSWER_SECONDS = 60
# environment of processes that run models on CPUs: by default glibc returns the memory of large activations to the
# system and faults it in again at every layer; without that, a forward pass of EfficientNet-Lite0 in fp32 took a third
# of the time
CPU_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}


def connect(config: ClusterConfig, *, dashboard: bool = False) -> str | None:
    """Connect to the cluster, or start one on this machine; return host and port of Ray's dashboard, if it has one.

    `dashboard`: start a cluster with the dashboard. If this process is connected already, only its limits are set.
    Errors: `UserError` if no cluster answers at the address, or Ray does not start here in time."""
    _quiet_data()
    _set_limits(config)
    if ray.is_initialized():
        return None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = _address(config)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # more logical CPUs than cores: stages take turns, and decode tasks share the cores with the training workers
        cpus = config.num_cpus or max(2 * (os.cpu_count() or 1), LOCAL_MIN_CPUS)
        start = partial(ray.init, address="local", num_cpus=cpus, include_dashboard=dashboard, **quiet)
    else:
        _check_answers(address)
        start = partial(ray.init, address=address, **quiet)
    try:
        with _own_sigterm(), _stderr_closed():
            connected = start()
        logger.info("connected to the Ray cluster at %s, %d logical CPUs, %d GPUs", address, num_cpus(), num_gpus())
        return connected.dashboard_url or None
    except Exception as error:
        if address == "local" and _is_late(error):
            raise UserError(
                f"Ray did not start on this machine: {first_line(error)}; try again when the machine is less busy, "
                "or run `ray start --head` first to use that cluster"
            ) from error
        if address == "local" or not isinstance(error, (ValueError, ConnectionError, RuntimeError)):
            raise
        instead = "" if config.address or os.environ.get("RAY_ADDRESS") else "; cluster.address=local starts another"
        raise UserError(f"cannot connect to the Ray cluster at {address}: {first_line(error)}{instead}") from error


def _address(config: ClusterConfig) -> str:
    # as in `ray.init()`; `cluster.num_cpus` asks for a cluster that is started here
    told = config.address or os.environ.get("RAY_ADDRESS")
    return told or ("auto" if config.num_cpus is None and _is_on_a_node() else "local")


def _is_on_a_node() -> bool:
    # the note of `ray start` outlives its cluster, and another program may use the port by then: check that a node of
    # that cluster runs on this machine
    noted = services.find_bootstrap_address(None)
    return bool(noted) and noted in services.find_gcs_addresses()


def _is_late(error: Exception) -> bool:
    # Ray waits half a minute for each of its processes and then raises one of these; in one place it is a plain
    # Exception. A second try here would fail: the processes of the first start live until this process ends
    return type(error) is Exception or isinstance(error, (RuntimeError, TimeoutError, ConnectionError))


def _check_answers(address: str) -> None:
    # Ray itself tries for minutes, and reports the reason on stderr, which is closed meanwhile
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"the Ray cluster's address is {address}, where jobs are submitted; expected HOST:PORT of its head, or "
            "auto on one of its nodes; to submit a job, use `ray job submit -- orchestrator ...`"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); expected HOST:PORT of a running head "
            "(cluster.address= or RAY_ADDRESS); set neither to start a cluster on this machine"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    # Ray replaces the command line's handler, which tells the user how to resume
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _stderr_closed() -> Iterator[None]:
    # with a log level set, Ray's core prints a greeting to the descriptor itself; failures are raised as exceptions
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _quiet_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # raise the original error of a task: a user's mistake then stays one line
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def _set_limits(config: ClusterConfig) -> None:
    context = ray.data.DataContext.get_current()
    context.set_config(MAX_CPUS, config.scales_to_cpus or 0)
    context.set_config(MAX_GPUS, config.scales_to_gpus or 0)


def _limit(key: str) -> int:
    return int(ray.data.DataContext.get_current().get_config(key, 0))


def num_cpus() -> int:
    """Return the logical CPUs of the whole cluster, at the size it may grow to."""
    return max(int(ray.cluster_resources().get("CPU", 1)), _limit(MAX_CPUS))


def num_cores() -> int:
    """Return the cores of the whole cluster; a cluster on this machine has more logical CPUs than cores."""
    grows = _limit(MAX_CPUS) > 0
    return min(num_cpus(), os.cpu_count() or 1) if _is_here() and not grows else num_cpus()


def num_gpus() -> int:
    """Return the GPUs of the whole cluster, at the size it may grow to."""
    return max(int(ray.cluster_resources().get("GPU", 0)), _limit(MAX_GPUS))


def node_cpus() -> int:
    """Return the logical CPUs of the largest node, the most that one task may ask for."""
    return int(max(1, *(node["Resources"].get("CPU", 0) for node in _nodes())))


def check_shared(places: Mapping[str, str]) -> None:
    """Check that every running node sees the local folders; `places`: paths or URIs by setting.

    Errors: `UserError` for a folder that a node does not see: other nodes could not read the files of its tasks."""
    nodes = _nodes()
    folders = {key: place for key, place in places.items() if files.is_local(place)}
    if len(nodes) == 1 or not folders:
        return
    marks = {key: files.join(folder, f".seen-{uuid.uuid4().hex[:8]}") for key, folder in folders.items()}
    for mark in marks.values():
        files.write(mark, b"")
    try:
        for node, key in _not_seen(nodes, marks):
            raise UserError(
                f"{key}={folders[key]} is a folder of one node: {node} does not see it; expected a folder or bucket "
                f"that all {len(nodes)} nodes share: s3://..., gs://... or a network folder"
            )
    finally:
        for mark in marks.values():
            files.remove(mark)


def _not_seen(nodes: Sequence[Mapping[str, Any]], marks: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the address of a node, and the setting of a folder that it does not see."""
    # all nodes answer at the same time
    asked = [_seen_from.options(scheduling_strategy=_on(node)).remote(list(marks.values())) for node in nodes]
    for node, answer in zip(nodes, asked, strict=True):
        # a node that is being lost does not answer
        for key, is_there in zip(marks, _answer(answer), strict=False):
            if not is_there:
                yield node["NodeManagerAddress"], key


def check_outlive_job(places: Mapping[str, str]) -> None:
    """Check that paths outlive this process; `places`: paths or URIs by setting.

    A job of `ray job submit` runs in a copy of the working directory, which Ray removes after it. Errors: `UserError`
    for a path in that copy."""
    copy = os.getcwd() if JOB in os.environ and COPIES in os.getcwd() else None
    for key, place in places.items():
        if copy is not None and files.is_local(place) and Path(place).is_relative_to(copy):
            raise UserError(
                f"{key}={os.path.relpath(place, copy)} lies in the job's copy of the working directory, which Ray "
                f"removes after the job; expected a lasting one: {key}=s3://..., gs://... or an absolute path"
            )


@ray.remote(num_cpus=0)
def _seen_from(paths: list[str]) -> list[bool]:
    return [os.path.exists(path) for path in paths]


def _answer(asked: ray.ObjectRef) -> list[bool]:
    try:
        found: list[bool] = ray.get(asked, timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError:
        return []
    return found


def _on(node: Mapping[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _is_here() -> bool:
    nodes = _nodes()
    return len({node["NodeManagerHostname"] for node in nodes} | {socket.gethostname()}) == 1


def num_train_workers(asked: int | None, *, lanes: int) -> int:
    """Return the number of training workers: `asked`, else one per GPU, else up to 2 on CPUs.

    Errors: `UserError` if `lanes` is no multiple of it, or if the cluster can never hold them: Ray would wait for
    ever."""
    workers = asked or num_gpus() or min(LOCAL_MAX_WORKERS, os.cpu_count() or 1)
    if lanes % workers:
        raise UserError(
            f"training.lanes={lanes} must be a multiple of the {workers} training workers; "
            f"set training.lanes or training.num_workers"
        )
    if num_gpus() and workers > num_gpus():
        raise UserError(
            f"training.num_workers={workers}, but the cluster has {num_gpus()} GPUs, one per worker; set "
            "fewer, or cluster.scales_to_gpus if an autoscaler adds nodes"
        )
    if not num_gpus() and workers + 2 > num_cpus():
        raise UserError(
            f"training.num_workers={workers} needs {workers + 2} logical CPUs (the workers and two for "
            f"reading), but the cluster has {num_cpus()}; set fewer workers, cluster.num_cpus, or "
            "cluster.scales_to_cpus if an autoscaler adds nodes"
        )
    return workers
