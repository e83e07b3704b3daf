"""Run one trial in its own process: the whole pipeline, with its progress sent to the board."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.engine import ray_cluster
from orchestrator.errors import UserError
from orchestrator.pipeline import execute, planned
from orchestrator.report.files import JSON_FILE
from orchestrator.report.schema import Report
from orchestrator.sweep.board import TrialDisplay
from orchestrator.sweep.report.results import metrics_of
from orchestrator.sweep.state import TrialState, fail, read_state, start, write_state
from orchestrator.sweep.trials import TrialJob
from orchestrator.sweep.warnings import FILE as WARNINGS_FILE

SAMPLES = "samples_seen"


def run_trial(job: TrialJob, board: Any, measured: Callable[[dict[str, float]], None]) -> dict[str, float]:
    """Run the pipeline to its end and return the pre-trained model's metrics with the samples that it saw.

    `measured` receives each evaluation during pre-training. Errors: those of a run; the trial's state keeps them. A
    trial that has failed for good raises the same error again at once."""
    before = read_state(job.out)
    if before is not None and before.state == "failed" and before.is_final:
        raise UserError(str(before.reason))
    start(job.out, job.settings, stale=(JSON_FILE, WARNINGS_FILE))
    display = TrialDisplay(
        job.name, board, out=job.out, total=job.num_samples or 0, metric=job.metric, measured=measured
    )
    try:
        ray_cluster.connect(job.config.cluster)
        execute(planned(job.config), "run", display, checks_inputs=False)
    except Exception as error:
        fail(job.out, job.settings, error)
        raise
    # after the report: this state says that the report is there
    write_state(job.out, TrialState(state="finished", settings=job.settings))
    report = Report.read(job.out)
    values = metrics_of(report, "pretrain")
    known = {"metric": values[job.metric]} if job.metric in values else {}
    display.send(stage="finished", **known)
    return {**values, SAMPLES: report.training["pretrain"].samples_seen}
