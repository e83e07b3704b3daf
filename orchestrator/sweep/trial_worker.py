"""A trial as its process runs it: the whole pipeline, told to the board; what went wrong is left in its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import exceptions

from orchestrator.config import Config
from orchestrator.engine import ray_cluster
from orchestrator.errors import UserError, causes
from orchestrator.pipeline import execute, planned
from orchestrator.report.files import JSON_FILE
from orchestrator.report.schema import ModelEvaluation, Report
from orchestrator.storage import files
from orchestrator.storage.files import StoreError
from orchestrator.sweep.board import TrialDisplay
from orchestrator.sweep.schema import AVERAGE
from orchestrator.sweep.warnings import FILE as WARNINGS_FILE

SETTINGS_FILE, FAILURE_FILE, STOPPED_FILE = "settings.json", "failure.json", "stopped.json"
SAMPLES = "samples_seen"
# of Ray, for what takes the whole command with it; a process that is killed for its memory is not among them
LOST = (
    exceptions.LocalRayletDiedError,
    exceptions.NodeDiedError,
    exceptions.OwnerDiedError,
    exceptions.RaySystemError,
    exceptions.RpcError,
)
NODE_DIED = "node has died"


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What a trial's process needs: its name and settings, its whole configuration, the metric, the samples it will
    see (None where that is not known yet)."""

    name: str
    settings: dict[str, Any]
    config: Config
    metric: str
    num_samples: int | None

    @property
    def out(self) -> str:
        """The run's folder."""
        return str(self.config.out)


def run_trial(job: TrialJob, board: Any, measured: Callable[[dict[str, float]], None]) -> dict[str, float]:
    """Runs the pipeline to its end; the pre-trained model's metrics, and the samples it saw.

    Errors: as a run's, which are noted in the trial's folder; one that no retry mends is raised again at once."""
    noted = files.join(job.out, FAILURE_FILE)
    if files.exists(noted) and files.read_json(noted)["final"]:
        raise UserError(files.read_json(noted)["reason"])
    # they tell how a trial ended
    for file in (JSON_FILE, STOPPED_FILE, WARNINGS_FILE):
        files.remove(files.join(job.out, file))
    files.write_json(files.join(job.out, SETTINGS_FILE), job.settings)
    display = TrialDisplay(
        job.name, board, out=job.out, total=job.num_samples or 0, metric=job.metric, measured=measured
    )
    try:
        ray_cluster.connect(job.config.cluster)
        execute(planned(job.config), "run", display)
    except Exception as error:
        final = isinstance(first_cause(error), UserError) and not isinstance(first_cause(error), StoreError)
        files.write_json(noted, {"reason": reason(error), "final": final})
        raise
    files.remove(noted)
    result = Report.model_validate_json(files.read(files.join(job.out, JSON_FILE)))
    values = metrics_of(result, "pretrain")
    known = {"metric": values[job.metric]} if job.metric in values else {}
    display.tell(stage="finished", **known)
    return {**values, SAMPLES: result.training["pretrain"].samples_seen}


def metrics_of(report: Report, phase: str) -> dict[str, float]:
    """The results of a phase's model by SET/METRIC; of benchmark tasks the main ones, and the averages."""
    model = report.evaluation.get(phase, ModelEvaluation())
    shot = model.zero_shot
    values = {f"zero_shot/{name}": getattr(shot, name) for name in ("top1", "top5", "mean_per_class")} if shot else {}
    recalls = {name: value for name, value in (model.retrieval or {}).items() if "recall" in name}
    values |= {f"retrieval/{name}": value for name, value in recalls.items()}
    if phase in report.tasks:
        table = report.tasks[phase]
        values |= {f"tasks/{task.key}": task.value for task in table.results}
        values |= {AVERAGE + one.name: one.value for one in table.averages if one.value is not None}
    return values


def ends_sweep(error: BaseException) -> bool:
    """Whether what went wrong is no matter of one trial's settings: a place that cannot be read or written, or a node
    or the cluster that was lost."""
    return any(
        isinstance(one, (StoreError, *LOST)) or (isinstance(one, exceptions.ActorDiedError) and NODE_DIED in str(one))
        for one in causes(error)
    )


def first_cause(error: BaseException) -> BaseException:
    """What began it, under what Ray and others have wrapped around it."""
    *_, innermost = causes(error)
    return innermost


def reason(error: BaseException) -> str:
    """What went wrong, on one line: the innermost cause, without the trace that Ray wraps around it."""
    cause = first_cause(error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    told = lines[-1] if lines and "Traceback" in lines[0] else " ".join(lines)[:500]
    return told if isinstance(cause, UserError) else f"{type(cause).__name__}: {told}"
