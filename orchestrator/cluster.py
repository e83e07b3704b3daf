"""The Ray cluster a command runs on: the one it is told, the one it is in, or one started on this machine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from orchestrator.config import ClusterConfig
from orchestrator.errors import UserError

# Train, its controller and a decode task must fit beside the workers: 2 workers on 2 logical CPUs would wait for ever
LOCAL_MIN_CPUS = 4
LOCAL_MAX_WORKERS = 2
# of processes that run models on CPUs: glibc gives the memory of large activations back to the system and faults it in
# again at every layer; kept, the same forward pass took a third of the time (EfficientNet-Lite0, fp32)
CPU_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}


def connect(config: ClusterConfig, *, dashboard: bool = False) -> None:
    """Connects to the cluster, or starts one here, with Ray's dashboard or without; a second call in one process only
    sets up the process."""
    _quiet_data()
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # logical CPUs, not cores: stages take turns, and decode tasks share the cores with the training workers
        num_cpus = config.num_cpus or max(2 * (os.cpu_count() or 1), LOCAL_MIN_CPUS)
        start = partial(ray.init, address="local", num_cpus=num_cpus, include_dashboard=dashboard, **quiet)
    else:
        start = partial(ray.init, address=address, **quiet)
    with _own_sigterm(), _stderr_closed():
        start()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    # Ray puts a handler of its own in place of the command line's, which says what to do next
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _stderr_closed() -> Iterator[None]:
    # Ray's core greets on the raw descriptor when its log level is set; what goes wrong comes as an exception
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
    # the cause as it was raised, so that a user's mistake in a task is still one line
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def num_cpus() -> int:
    """Logical CPUs of the whole cluster."""
    return int(ray.cluster_resources().get("CPU", 1))


def num_cores() -> int:
    """Cores of the whole cluster: a local one has more logical CPUs than there are."""
    return min(num_cpus(), len(ray.nodes()) * (os.cpu_count() or 1))


def num_gpus() -> int:
    """GPUs of the whole cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def node_cpus() -> int:
    """Logical CPUs of the largest node: what one task may ask for at most."""
    return int(max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]))


def num_train_workers(asked: int | None, *, lanes: int) -> int:
    """Training workers: as asked, else one for each GPU, else up to 2 on CPU; `lanes` must be a multiple.

    Errors: `UserError` when the cluster can never hold them (Ray would only wait)."""
    workers = asked or num_gpus() or min(LOCAL_MAX_WORKERS, os.cpu_count() or 1)
    if lanes % workers:
        raise UserError(
            f"training.lanes={lanes} must be a multiple of the {workers} training workers; "
            f"set training.lanes or training.num_workers"
        )
    if num_gpus() and workers > num_gpus():
        raise UserError(f"training.num_workers={workers}, but the cluster has {num_gpus()} GPUs, one for each worker")
    if not num_gpus() and workers + 2 > num_cpus():
        raise UserError(
            f"training.num_workers={workers} needs {workers + 2} logical CPUs (the workers and two for "
            f"reading), but the cluster has {num_cpus()}; set cluster.num_cpus or fewer workers"
        )
    return workers
