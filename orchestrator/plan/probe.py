"""Run the probe: the stages of a run on a few parts of the pool, in a temporary store, each measured."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from orchestrator.config import Config
from orchestrator.engine import ray_cluster
from orchestrator.engine.console import Display
from orchestrator.engine.role import Role
from orchestrator.errors import UserError
from orchestrator.plan import probe_config
from orchestrator.plan.evaluation_size import set_sizes
from orchestrator.plan.measurements import Measurements
from orchestrator.plan.probe_pool import ENOUGH_ROWS, sample_parts
from orchestrator.plan.probe_runner import ListStages, ProbeRunner
from orchestrator.plan.rows import Reach
from orchestrator.source import Source
from orchestrator.storage import files


def probe(
    config: Config, source: Source, list_stages: ListStages, found: Sequence[Reach], display: Display
) -> Measurements:
    """Measure the remaining stages of a run. `found` are its stages; `list_stages` lists those of a config and source.

    Errors: those of the run itself."""
    started = time.monotonic()
    ray_cluster.connect(config.cluster)
    ray_cluster.check_shared({"store": config.store})
    cores, cpus = ray_cluster.num_cores(), ray_cluster.num_cpus()
    measured = Measurements(num_cores=cores, num_gpus=ray_cluster.num_gpus(), shares_cores=cpus > cores)
    measured.num_workers = _num_workers(config, found, display)
    measured.decoding_cores = max(1, cores - measured.num_workers * config.training.cpus_per_worker)
    ray_cluster.connect(probe_config.cluster_of(config))
    store = files.join(config.store, f"probe-{uuid.uuid4().hex[:8]}")
    try:
        with display.stage("probe", unit="stages") as progress:
            has_vectors = any(map(config.selection.embedding_of, config.selection.steps))
            sample = sample_parts(source, config.plan.probe_parts, max_rows=ENOUGH_ROWS if has_vectors else None)
            if any(one.stage.role == Role.EVALUATE and not one.stage.artifact.is_complete() for one in found):
                measured.sets = set_sizes(config.evaluation)
            measured.left_out = list(_left_out(config))
            runner = ProbeRunner(probe_config.in_own_store(config, store), sample, list_stages, found, measured)
            for done, name in enumerate(runner.steps(), 1):
                progress.update(done, note=name)
    finally:
        files.remove(store)
    # after the probe, to include nodes that an autoscaler has added
    measured.node_cores = min(cores, ray_cluster.node_cpus())
    measured.seconds = time.monotonic() - started
    return measured


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
        return ray_cluster.num_train_workers(config.training.num_workers, lanes=config.training.lanes)
    except UserError as error:
        display.line(f"training is not measured: {error}")
        return 0
