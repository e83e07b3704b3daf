"""Run the probe: the stages of a run on a few parts of the pool, in a temporary store, each measured."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.config import Config
from orchestrator.engine import ray_cluster, stop_signals
from orchestrator.engine.console import Display
from orchestrator.engine.role import Role
from orchestrator.errors import UserError
from orchestrator.plan import probe_config
from orchestrator.plan.evaluation_size import set_sizes
from orchestrator.plan.measurements import Measurements
from orchestrator.plan.probe_pool import ENOUGH_ROWS, sample_parts
from orchestrator.plan.probe_runner import ListStages, ProbeRunner
from orchestrator.plan.rows import Reach
from orchestrator.plan.time_limit import TimeUp, time_limit
from orchestrator.source import Source
from orchestrator.storage import files

# the time limits of a stage and of the whole probe, without the start of Ray
STAGE_SECONDS, ALL_SECONDS = 75.0, 180.0


@dataclass(frozen=True)
class Limits:
    """The time limits of a stage and of the whole probe, in seconds."""

    stage_seconds: float
    seconds: float

    @classmethod
    def of(cls, config: Config) -> Limits:
        """Return the limits; there are none if nodes may have to start first, which can take many minutes."""
        grows = config.cluster.scales_to_cpus or config.cluster.scales_to_gpus
        return cls(math.inf, math.inf) if grows else cls(STAGE_SECONDS, ALL_SECONDS)


def probe(
    config: Config, source: Source, list_stages: ListStages, found: Sequence[Reach], display: Display
) -> Measurements:
    """Measure the remaining stages of a run. `found` are its stages; `list_stages` lists those of a config and source.

    The time is limited: what is not measured by then has no estimate, and a remark says so. Errors: those of the run
    itself."""
    started = time.monotonic()
    ray_cluster.connect(config.cluster)
    ray_cluster.check_shared({"store": config.store})
    cores, cpus = ray_cluster.num_cores(), ray_cluster.num_cpus()
    measured = Measurements(num_cores=cores, num_gpus=ray_cluster.num_gpus(), shares_cores=cpus > cores)
    measured.num_workers = _num_workers(config, found, display)
    worker_cpus = ray_cluster.cpus_per_worker(config.training.cpus_per_worker)
    measured.decoding_cores = max(1, cores - measured.num_workers * worker_cpus)
    ray_cluster.connect(probe_config.cluster_of(config))
    with _own_store(config) as store, stop_signals.not_forwarded():
        has_vectors = any(map(config.selection.embedding_of, config.selection.steps))
        sample = sample_parts(source, config.plan.probe_parts, max_rows=ENOUGH_ROWS if has_vectors else None)
        if any(one.stage.role == Role.EVALUATE and not one.stage.artifact.is_complete() for one in found):
            measured.sets = set_sizes(config)
        measured.left_out = list(_left_out(config))
        runner = ProbeRunner(probe_config.in_own_store(config, store), sample, list_stages, found, measured)
        left = {one.stage.name for one in found if not one.stage.artifact.is_complete()}
        is_whole = _measure(runner, left, Limits.of(config), display)
        # after the probe, to include nodes that an autoscaler has added
        measured.node_cores = min(cores, ray_cluster.node_cpus())
        if not is_whole:
            # tasks that still run would write into the folder again
            ray_cluster.disconnect()
    measured.seconds = time.monotonic() - started
    return measured


def _measure(runner: ProbeRunner, left: set[str], limits: Limits, display: Display) -> bool:
    """Measure the stages with the names `left`, and show which one is next; return whether the limits were enough."""
    steps, done, end = runner.steps(), set[str](), time.monotonic() + limits.seconds
    with display.stage("probe", unit="stages", total=len(left)) as progress:
        name = "the pool"
        try:
            while True:
                with time_limit(min(limits.stage_seconds, end - time.monotonic())):
                    following = next(steps, None)
                done |= left & {name, *runner.measured.stages, *runner.measured.phases}
                if following is None:
                    return True
                name = following
                progress.update(len(done), note=f"measuring {name}{_until(end)}", rate=0.0)
                progress.show()
        except TimeUp:
            runner.measured.remarks.append(
                f"the probe stopped while it measured {name}: it takes at most {limits.stage_seconds:,.0f} s for a "
                f"stage and {limits.seconds:,.0f} s in all; a smaller plan.probe_parts makes it faster"
            )
            return False
        finally:
            progress.update(len(done), rate=0.0)


def _until(end: float) -> str:
    return "" if math.isinf(end) else f", at most {max(0.0, end - time.monotonic()):,.0f} s left"


@contextmanager
def _own_store(config: Config) -> Iterator[str]:
    """Yield the URI of a folder in the run's store, which is removed after the block."""
    store = files.join(config.store, f"probe-{uuid.uuid4().hex[:8]}")
    try:
        yield store
    finally:
        if stop_signals.received() is not None:
            # tasks that still run would write into the folder again
            ray_cluster.disconnect()
        files.remove(store)


def _left_out(config: Config) -> Iterator[str]:
    if config.training.evaluate_every_steps is not None:
        yield "evaluation during training (training.evaluate_every_steps)"
    if config.evaluation.tasks and config.evaluation.linear_probe:
        yield "fitting linear probes"


def _num_workers(config: Config, found: Sequence[Reach], display: Display) -> int:
    """Return the run's training workers; 0 if no phase is left, or the cluster has no room for them."""
    if all(one.stage.artifact.is_complete() for one in found if one.stage.trains):
        return 0
    try:
        return ray_cluster.num_train_workers(config.training)
    except UserError as error:
        display.line(f"training is not measured: {error}")
        return 0
