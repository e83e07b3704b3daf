"""The Ray cluster of a command: a given one, the one that this node belongs to, or a new one on this machine. Also its
size, the size it may grow to, and checks that all nodes see the same folders."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.config import ClusterConfig, TrainingConfig
from orchestrator.config.training import lanes_hint
from orchestrator.engine.ray_address import address_of, check_answers
from orchestrator.engine.ray_start import kept_sigterm_handler, log_messages, own_process_groups, silenced_stderr
from orchestrator.errors import ClusterError, UserError, first_line
from orchestrator.storage import files

logger = logging.getLogger(__name__)

# Ray Train, its controller and a decode task need CPUs beside the workers: 2 workers on 2 logical CPUs never start
LOCAL_MIN_CPUS = 4
LOCAL_MAX_WORKERS = 2
# the environment variable that Ray sets in the process of a job, and the folder of its copies of working directories
JOB_VARIABLE, COPIES_FOLDER = "RAY_JOB_CONFIG_JSON_ENV_VAR", "working_dir_files"
# the size to which an autoscaler may grow the cluster; 0 means that the cluster keeps its size. Ray knows only running
# nodes, so `connect` stores the limits in the context of Ray Data, which lives as long as the connection
MAX_CPUS, MAX_GPUS = "orchestrator.scales_to_cpus", "orchestrator.scales_to_gpus"
# the most logical CPUs that a training worker with a GPU reserves by default, and its node's CPUs for each of them
GPU_WORKER_CPUS, DECODING_PER_WORKER = 4, 4
# time limit for a node to answer whether it sees a folder
ANSWER_SECONDS = 60
# environment of processes that run models on CPUs. By default, glibc returns the memory of large activations to the
# system and faults it in again at every layer. With these settings it keeps the memory, and the same forward pass took
# a third of the time (EfficientNet-Lite0, fp32)
CPU_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
# Ray shows all GPUs of the node to tasks and actors that ask for none, unless their processes have this variable. As
# part of the job's environment it also holds on clusters that others have started
HIDDEN_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


def connect(config: ClusterConfig, *, dashboard: bool = False) -> str | None:
    """Connect to a cluster or start one on this machine; return the host and port of the dashboard, if there is one.

    A second call in a process keeps the connection and only applies the limits of `config`.
    Errors: `UserError` if there is no cluster at the address, or if Ray does not start."""
    configure_data()
    _set_limits(config)
    if ray.is_initialized():
        return None
    log_messages()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = address_of(config)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **_environment()}
    if address == "local":
        # more logical CPUs than cores: stages run one after another, and decode tasks share the cores with the workers
        cpus = config.num_cpus or max(2 * (os.cpu_count() or 1), LOCAL_MIN_CPUS)
        start = partial(ray.init, address="local", num_cpus=cpus, include_dashboard=dashboard, **quiet)
    else:
        check_answers(address)
        start = partial(ray.init, address=address, **quiet)
    try:
        with kept_sigterm_handler(), own_process_groups(), silenced_stderr():
            connected = start()
        logger.info("connected to the Ray cluster at %s: %d logical CPUs, %d GPUs", address, num_cpus(), num_gpus())
        return connected.dashboard_url or None
    except Exception as error:
        if address == "local" and _is_timeout(error):
            raise ClusterError(
                f"Ray did not start on this machine: {first_line(error)}; run the command again when the machine is "
                "less busy, or start a cluster first with `ray start --head`"
            ) from error
        if address == "local" or not isinstance(error, (ValueError, ConnectionError, RuntimeError)):
            raise
        is_given = config.address or os.environ.get("RAY_ADDRESS")
        advice = "" if is_given else "; set cluster.address=local to start a new cluster"
        raise UserError(f"cannot connect to the Ray cluster at {address}: {first_line(error)}{advice}") from error


def disconnect() -> None:
    """Disconnect from the cluster: the tasks and actors of this process end, and so does a cluster that it started."""
    ray.shutdown()


def _environment() -> dict[str, Any]:
    # Ray refuses a variable that the environment of a submitted job sets too
    is_set = any(name in os.environ.get(JOB_VARIABLE, "") for name in HIDDEN_GPUS)
    return {} if is_set else {"runtime_env": {"env_vars": HIDDEN_GPUS}}


def _is_timeout(error: Exception) -> bool:
    # each Ray process has half a minute to start. Then Ray raises one of these classes, or a plain `Exception`. We do
    # not retry: the processes of the first start stay until this process ends, and would disturb a second start
    return type(error) is Exception or isinstance(error, (RuntimeError, TimeoutError, ConnectionError))


def configure_data() -> None:
    """Set this process's Ray Data context. A task that starts datasets of its own calls it too."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # keep the original class of an error in a task, because a `UserError` is shown as one line
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
    """Return the logical CPUs of the whole cluster at its largest size."""
    return max(int(ray.cluster_resources().get("CPU", 1)), _limit(MAX_CPUS))


def num_cores() -> int:
    """Return the cores of the whole cluster. A cluster on this machine has more logical CPUs than cores."""
    grows = _limit(MAX_CPUS) > 0
    return min(num_cpus(), os.cpu_count() or 1) if _is_here() and not grows else num_cpus()


def num_gpus() -> int:
    """Return the GPUs of the whole cluster at its largest size."""
    return max(int(ray.cluster_resources().get("GPU", 0)), _limit(MAX_GPUS))


def node_cpus() -> int:
    """Return the logical CPUs of the largest node, the most that one task can request."""
    return int(max(1, *(node["Resources"].get("CPU", 0) for node in running_nodes())))


def cpus_per_worker(setting: int | None) -> int:
    """Return the logical CPUs that a training worker reserves, by `training.cpus_per_worker`.

    By default it is one on CPUs. A worker with a GPU also has a thread that makes batches, the threads of Ray and
    nccl, and those that queue kernels: it reserves up to four, but no more than a quarter of its share of its node's
    CPUs, so that decoding keeps the rest."""
    if setting is not None:
        return setting
    shares = [
        node.get("CPU", 0) / node["GPU"] for node in (node["Resources"] for node in running_nodes()) if node.get("GPU")
    ]
    return max(1, min(GPU_WORKER_CPUS, int(min(shares, default=0) // DECODING_PER_WORKER)))


def check_shared(paths: Mapping[str, str]) -> None:
    """Check that every running node sees the local folders among `paths`, which maps settings to paths or URIs.

    Errors: `UserError` for a folder that a node does not see: the results of its tasks would be lost."""
    nodes = running_nodes()
    folders = {key: path for key, path in paths.items() if files.is_local(path)}
    if len(nodes) == 1 or not folders:
        return
    marks = {key: files.join(folder, f".seen-{uuid.uuid4().hex[:8]}") for key, folder in folders.items()}
    for mark in marks.values():
        files.write(mark, b"")
    try:
        for node, key in _unseen(nodes, marks):
            raise UserError(
                f"{key}={folders[key]} is a folder of one node: {node} does not see it; expected a path that all "
                f"{len(nodes)} nodes share: s3://..., gs://... or a network folder"
            )
    finally:
        for mark in marks.values():
            files.remove(mark)


def _unseen(nodes: Sequence[Mapping[str, Any]], marks: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (address of a node, setting of a folder) for each folder whose mark file the node does not see."""
    # all nodes answer at the same time
    answers = [_seen_from.options(scheduling_strategy=_on(node)).remote(list(marks.values())) for node in nodes]
    for node, answer in zip(nodes, answers, strict=True):
        # a node that has just failed gives no answer, so the lists may differ in length
        for key, is_seen in zip(marks, _result(answer), strict=False):
            if not is_seen:
                yield node["NodeManagerAddress"], key


def check_outlive_job(paths: Mapping[str, str]) -> None:
    """Check that `paths`, by setting, remain after a job of `ray job submit`.

    Such a job runs in a copy of the working directory, which Ray removes afterwards.
    Errors: `UserError` for a path in that copy."""
    copy = os.getcwd() if JOB_VARIABLE in os.environ and COPIES_FOLDER in os.getcwd() else None
    for key, path in paths.items():
        if copy is not None and files.is_local(path) and Path(path).is_relative_to(copy):
            raise UserError(
                f"{key}={os.path.relpath(path, copy)} lies in the job's copy of the working directory, which Ray "
                f"removes after the job; expected {key}=s3://..., gs://... or an absolute path"
            )


@ray.remote(num_cpus=0)
def _seen_from(paths: list[str]) -> list[bool]:
    return [os.path.exists(path) for path in paths]


def _result(answer: ray.ObjectRef) -> list[bool]:
    try:
        found: list[bool] = ray.get(answer, timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError:
        return []
    return found


def _on(node: Mapping[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def running_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of the running nodes."""
    return [node for node in ray.nodes() if node["Alive"]]


def _is_here() -> bool:
    nodes = running_nodes()
    return len({node["NodeManagerHostname"] for node in nodes} | {socket.gethostname()}) == 1


def num_train_workers(training: TrainingConfig) -> int:
    """Return the number of training workers: the configured one, or one per GPU, or at most 2 on CPUs.

    Errors: `UserError` if the lanes are not a multiple of it, or if the cluster can never run that many workers (Ray
    would wait forever)."""
    workers = training.num_workers or num_gpus() or min(LOCAL_MAX_WORKERS, os.cpu_count() or 1)
    if training.lanes % workers:
        raise UserError(
            f"training.lanes={training.lanes} must be a multiple of the {workers} training workers; set "
            f"training.num_workers, or {lanes_hint(training, workers)}"
        )
    if num_gpus() and workers > num_gpus():
        raise UserError(
            f"training.num_workers={workers}, but the cluster has {num_gpus()} GPUs, and each worker needs one; "
            "set fewer workers, or set cluster.scales_to_gpus if an autoscaler adds nodes"
        )
    if not num_gpus() and workers + 2 > num_cpus():
        raise UserError(
            f"training.num_workers={workers} needs {workers + 2} logical CPUs (the workers and two for "
            f"readers), but the cluster has {num_cpus()}; set fewer workers, more "
            "cluster.num_cpus, or cluster.scales_to_cpus if an autoscaler adds nodes"
        )
    return workers
