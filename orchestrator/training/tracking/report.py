"""The end of a run: trackers and TensorBoard get its report and the evaluation's numbers."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.config import Config
from orchestrator.engine.role import TRAINING_ROLES
from orchestrator.engine.run_record import RunRecord, StageRecord
from orchestrator.evaluation.sets import named_results
from orchestrator.storage import files
from orchestrator.training.tracking.curve import Curve
from orchestrator.training.tracking.services import PhaseRun, Record, Tracker, tracked_values
from orchestrator.training.tracking.trackers import configured, reason

REPORT = ("report.html", "report.json")
# sorts after the files of all sessions: TensorBoard reads files in the order of their names
LAST_EVENTS = "events.out.tfevents.9999999999.results"


def attach_report(config: Config, out: str, record: RunRecord, warn: Callable[[str], None]) -> None:
    """Attach the report of a finished run and the evaluation's numbers to the tracker runs of its phases.

    A tracker also gets the steps of the curve that it lacks; for a reused phase, that is the whole curve. A tracker
    that fails gives one line to `warn`. TensorBoard's files are copied to `tensorboard/PHASE` in `out`, and get the
    settings and the evaluation's numbers there."""
    settings = config.model_dump(mode="json")
    for stage in record.stages:
        if stage.role not in TRAINING_ROLES:
            continue
        results = _results(config, record, stage)
        events = stage.artifact.path("tensorboard")
        if config.tracking.tensorboard and files.exists(events):
            copy = files.join(out, "tensorboard", stage.role.value)
            files.remove(copy)
            files.copy(events, copy)
            _add_to_tensorboard(copy, settings, results)
        run = PhaseRun(phase=stage.role.value, uri=stage.uri, settings=settings)
        for title, tracker in configured(config.tracking).items():
            try:
                _attach(tracker(config.tracking, run), record, stage, results, out)
            except Exception as error:  # noqa: BLE001 each library has its own errors, and the run is complete
                warn(f"{title} did not get the report of {run.name}: {reason(error)}")


def _results(config: Config, record: RunRecord, stage: StageRecord) -> Record:
    # the metrics of the phase's model, at its last step; empty without an evaluation
    for evaluation in record.of_kind("evaluation"):
        if stage.role.value in evaluation.totals:
            values = named_results(config.evaluation, evaluation.totals[stage.role.value])
            return {"step": stage.artifact.totals["steps"], **values}
    return {}


def _add_to_tensorboard(uri: str, settings: dict[str, Any], results: Record) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            writer.add_text("config", f"```json\n{json.dumps(settings, indent=1)}\n```")
            for name, value in tracked_values(results).items():
                writer.add_scalar(name, value, int(results["step"]))
        (events,) = Path(folder).iterdir()
        files.copy(str(events), files.join(uri, LAST_EVENTS))


def _attach(tracker: Tracker, record: RunRecord, stage: StageRecord, results: Record, out: str) -> None:
    try:
        if stage.reused or tracker.knows_its_steps:
            curve = Curve(stage.artifact.uri, first_step=sys.maxsize)
            tracker.log([one for one in curve.records if one["step"] > tracker.last_step])
        if results:
            tracker.conclude(results)
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, name) for name in REPORT]
            for file in paths:
                file.write_bytes(files.read(files.join(out, file.name)))
            tracker.attach(record.name, paths)
    finally:
        tracker.close(is_failed=False)
