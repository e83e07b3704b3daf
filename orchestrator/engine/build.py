"""Builds a run's stages in order, each under the lease of its artifact, and records what the run is made of."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from orchestrator.config import Config
from orchestrator.engine import lease, ray_cluster
from orchestrator.engine.console import Display
from orchestrator.engine.log import UPLOAD
from orchestrator.engine.role import TRAINING_ROLES, Role
from orchestrator.engine.run_record import RunRecord, StageRecord, library_versions
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError, mistake_in, one_line
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
) -> tuple[RunRecord, Exception | None]:
    """Connect to the cluster, build every stage in order and return the run's record, which is not written yet.

    If training is done and the evaluation fails, its error is returned with a record of the stages before it.
    `on_lost` is called when another run takes over the lease of a stage. Errors: `UserError` for folders that cannot be
    written or that not all nodes share, and for more training workers than the cluster holds: all before the first
    stage."""
    started, clock = datetime.now(UTC), time.monotonic()
    # the first write into `out`: if the folder is read-only or full, the run fails now and not after hours of work
    files.write_json(files.join(out, CONFIG_FILE), config.model_dump(mode="json"))
    ray_cluster.connect(config.cluster)
    ray_cluster.check_shared({"out": out, "store": config.store})
    if any(stage.trains and not stage.artifact.is_complete() for stage in stages):
        ray_cluster.num_train_workers(config.training)
    records, failure = _build_all(stages, display, on_lost)
    record = RunRecord(
        name=config.name,
        verb=verb,
        config=config.model_dump(mode="json"),
        stages=records,
        versions=library_versions(),
        started=started.isoformat(timespec="seconds"),
        wall_seconds=round(time.monotonic() - clock, 1),
        not_evaluated=None if failure is None else one_line(mistake_in(failure) or failure),
    )
    return record, failure


def _build_all(
    stages: Sequence[Stage], display: Display, on_lost: Callable[[], None] | None
) -> tuple[list[StageRecord], Exception | None]:
    records: list[StageRecord] = []
    for stage in stages:
        try:
            records.append(build_stage(stage, display, on_lost))
        except Exception as error:
            if stage.role != Role.EVALUATE or not any(record.role in TRAINING_ROLES for record in records):
                raise
            # hours of training are worth a model and a report without this stage
            logger.error("%s: failed", stage.name, exc_info=error)
            return records, error
    return records, None


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


def raise_unfinished(failure: Exception, out: str, display: Display) -> NoReturn:
    """Raise the error of an evaluation that failed; the run in `out` has its model and its report."""
    model = files.join(out, "model")
    hint = f"the model and the report are in {out}; the same command, or evaluate with checkpoint={model}, finishes it"
    mistake = mistake_in(failure)
    if mistake is None:
        display.warn(f"the evaluation failed; {hint}")
        raise failure
    raise UserError(f"the evaluation failed: {one_line(mistake)}; {hint}") from failure
