"""Builds a run's stages in order, each under the lease of its artifact, and records what the run is made of."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from orchestrator.config import Config
from orchestrator.engine import lease, ray_cluster
from orchestrator.engine.console import Display
from orchestrator.engine.log import UPLOAD
from orchestrator.engine.run_record import RunRecord, StageRecord, library_versions
from orchestrator.engine.stage import Stage
from orchestrator.storage import files

logger = logging.getLogger(__name__)
CONFIG_FILE = "config.json"


def build_run(
    config: Config,
    stages: Sequence[Stage],
    *,
    verb: str,
    out: str,
    display: Display,
    on_lost: Callable[[], None] | None = None,
) -> RunRecord:
    """Connect to the cluster, build every stage in order and return the run's record, which is not written yet.

    `on_lost` is called when another run takes over the lease of a stage. Errors: `UserError` for folders that cannot be
    written or that not all nodes share, and for more training workers than the cluster holds: all before the first
    stage."""
    started, clock = datetime.now(UTC), time.monotonic()
    # the first write into `out`: if the folder is read-only or full, the run fails now and not after hours of work
    files.write_json(files.join(out, CONFIG_FILE), config.model_dump(mode="json"))
    ray_cluster.connect(config.cluster)
    ray_cluster.check_shared({"out": out, "store": config.store})
    if any(stage.trains and not stage.artifact.is_complete() for stage in stages):
        ray_cluster.num_train_workers(config.training.num_workers, lanes=config.training.lanes)
    records = [build_stage(stage, display, on_lost) for stage in stages]
    return RunRecord(
        name=config.name,
        verb=verb,
        config=config.model_dump(mode="json"),
        stages=records,
        versions=library_versions(),
        started=started.isoformat(timespec="seconds"),
        wall_seconds=round(time.monotonic() - clock, 1),
    )


def build_stage(stage: Stage, display: Display, on_lost: Callable[[], None] | None = None) -> StageRecord:
    """Build a stage, or reuse its artifact if that is complete; wait if another run is building it.

    `on_lost` is called when another run takes over the lease."""
    clock = time.monotonic()
    with lease.held(stage.artifact, name=stage.name, show=display.line, on_lost=on_lost) as is_ours:
        if is_ours:
            logger.info("%s: building %s", stage.name, stage.artifact.uri)
            stage.build(display)
        else:
            display.line(f"{stage.name}: reused")
    seconds = time.monotonic() - clock
    what = "built" if is_ours else "reused"
    logger.info("%s: %s in %.1f s, %s", stage.name, what, seconds, stage.artifact.uri, extra=UPLOAD)
    return StageRecord.of(stage, reused=not is_ours, seconds=round(seconds, 2))
