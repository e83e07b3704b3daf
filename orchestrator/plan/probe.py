"""The probe: the run's own stages on a few parts of the pool, in a place of their own, each measured."""

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
from orchestrator.plan.measurements import Probe
from orchestrator.plan.probe_runner import Make, Running
from orchestrator.plan.rows import Reach
from orchestrator.plan.subset import ENOUGH_ROWS, draw_parts
from orchestrator.source import Source
from orchestrator.storage import files


def probe(config: Config, source: Source, make: Make, found: Sequence[Reach], display: Display) -> Probe:
    """Measures what is left of a run, whose stages are `found`; `make` lists those of a config over a source.

    Errors: as the run's own."""
    started = time.monotonic()
    ray_cluster.connect(config.cluster)
    ray_cluster.check_shared({"store": config.store})
    cores, cpus = ray_cluster.num_cores(), ray_cluster.num_cpus()
    probed = Probe(num_cores=cores, num_gpus=ray_cluster.num_gpus(), shares_cores=cpus > cores)
    probed.num_workers = _num_workers(config, found, display)
    probed.decoding_cores = max(1, cores - probed.num_workers * config.training.cpus_per_worker)
    ray_cluster.connect(probe_config.cluster_of(config))
    place = files.join(config.store, f"probe-{uuid.uuid4().hex[:8]}")
    try:
        with display.stage("probe", unit="stages") as progress:
            has_vectors = any(map(config.selection.embedding_of, config.selection.steps))
            drawn = draw_parts(source, config.plan.probe_parts, max_rows=ENOUGH_ROWS if has_vectors else None)
            if any(one.stage.role == Role.EVALUATE and not one.stage.artifact.is_complete() for one in found):
                probed.sets = set_sizes(config.evaluation)
            probed.left_out = list(_left_out(config))
            running = Running(probe_config.in_own_store(config, place), drawn, make, found, probed)
            for done, name in enumerate(running.steps(), 1):
                progress.update(done, note=name)
    finally:
        files.remove(place)
    # of nodes that an autoscaler brought, too
    probed.node_cores = min(cores, ray_cluster.node_cpus())
    probed.seconds = time.monotonic() - started
    return probed


def _left_out(config: Config) -> Iterator[str]:
    if config.training.evaluate_every_steps is not None:
        yield "evaluation on the way (training.evaluate_every_steps)"
    if config.evaluation.tasks and config.evaluation.linear_probe:
        yield "the fits of linear probes"


def _num_workers(config: Config, found: Sequence[Reach], display: Display) -> int:
    """The run's training workers; 0 where no phase is left, or the cluster cannot hold them."""
    if all(one.stage.artifact.is_complete() for one in found if one.stage.trains):
        return 0
    try:
        return ray_cluster.num_train_workers(config.training.num_workers, lanes=config.training.lanes)
    except UserError as error:
        display.line(f"training is not measured: {error}")
        return 0
