"""What came out of a sweep: each trial's own report, or why there is none, put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.tune import Result

from orchestrator.config import Config
from orchestrator.engine.run_record import PHASES
from orchestrator.report.files import JSON_FILE
from orchestrator.report.schema import Report
from orchestrator.storage import files
from orchestrator.sweep.schema import ModelResult, TrialResult
from orchestrator.sweep.trial_worker import FAILURE_FILE, SAMPLES, STOPPED_FILE, metrics_of, reason
from orchestrator.sweep.trials import Trial


def trial_result(trial: Trial, end: Result | None, *, refused: str | None = None) -> TrialResult:
    """How a trial ended, by its own folder and what Tune says of it (None: nothing); `refused`: why it never began."""
    fixed: dict[str, Any] = {
        "name": trial.name,
        "settings": trial.settings,
        "control": trial.control,
        "seed": trial.seed,
        "out": trial.out,
    }
    if refused is not None:
        return TrialResult(**fixed, state="failed", reason=refused)
    if files.exists(files.join(trial.out, JSON_FILE)):
        return TrialResult(**fixed, state="finished", **_numbers(trial.out))
    if files.exists(files.join(trial.out, STOPPED_FILE)):
        return TrialResult(**fixed, state="stopped", **_stopped(trial))
    noted = files.join(trial.out, FAILURE_FILE)
    if files.exists(noted):
        return TrialResult(**fixed, state="failed", reason=files.read_json(noted)["reason"])
    told = reason(end.error) if end is not None and end.error is not None else "it never ran"
    return TrialResult(**fixed, state="failed", reason=told)


def has_ended(trial: Trial) -> bool:
    """Whether a trial has nothing left to do: it is finished, or was stopped early."""
    return any(files.exists(files.join(trial.out, file)) for file in (JSON_FILE, STOPPED_FILE))


def _stopped(trial: Trial) -> dict[str, Any]:
    last, metric = files.read_json(files.join(trial.out, STOPPED_FILE)), trial.config.sweep.metric
    seen, value = last[SAMPLES], last.get("value")
    told = {"reason": f"others were better after {seen:,} samples"}
    if value is None:
        return told
    model = ModelResult(samples_seen=seen, training_seconds=round(last["seconds"], 2), metrics={metric: value})
    return {"reason": f"{told['reason']}, where {metric} was {value:.1%}", "models": {"pretrain": model}}


def _numbers(out: str) -> dict[str, Any]:
    report = Report.model_validate_json(files.read(files.join(out, JSON_FILE)))
    pool = report.steps[0].pairs_in if report.steps else report.funnel[-1].pairs
    seconds = {stage.name: stage.computed_seconds for stage in report.stages}
    models: dict[str, ModelResult] = {}
    samples, trained = 0, 0.0
    for phase in PHASES:
        if phase in report.training:
            samples += report.training[phase].samples_seen
            trained += seconds[phase]
            values = metrics_of(report, phase)
            models[phase] = ModelResult(samples_seen=samples, training_seconds=round(trained, 2), metrics=values)
    pairs = report.training["pretrain"].pairs
    return {
        "pairs": pairs,
        "kept_fraction": pairs / max(1, pool),
        "pruning_seconds": report.cost.pruning_seconds if report.cost else None,
        "models": models,
    }


def dimensions(config: Config, trials: Iterable[TrialResult]) -> dict[str, list[Any]]:
    """The values of each dimension that trials have, in order."""
    found: dict[str, list[Any]] = {name: [] for name in config.sweep.space}
    for trial in trials:
        for name, value in trial.settings.items():
            if value not in found[name]:
                found[name].append(value)
    return {name: sorted(values, key=_order) for name, values in found.items()}


def _order(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))
