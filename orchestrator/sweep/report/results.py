"""The result of each trial: the numbers of its own report, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.config import Config
from orchestrator.engine.run_record import PHASES
from orchestrator.report.schema import ModelEvaluation, Report
from orchestrator.sweep.report.schema import AVERAGE, ModelResult, TrialResult
from orchestrator.sweep.state import TrialState, read_state, reason
from orchestrator.sweep.trials import Trial


def trial_result(trial: Trial, error: BaseException | None = None, *, not_prepared: str | None = None) -> TrialResult:
    """Return how a trial ended, as its folder says.

    `error`: how its process ended, for a folder that does not say it, as after a kill. `not_prepared`: why one of its
    shared stages failed, so that the trial never started."""
    fixed: dict[str, Any] = {
        "name": trial.name,
        "settings": trial.settings,
        "control": trial.control,
        "seed": trial.seed,
        "out": trial.out,
    }
    if not_prepared is not None:
        return TrialResult(**fixed, state="failed", reason=not_prepared)
    found = read_state(trial.out)
    if found is not None and found.state == "finished":
        return TrialResult(**fixed, state="finished", **_numbers(trial.out))
    if found is not None and found.state == "stopped":
        return TrialResult(**fixed, state="stopped", **_stopped(found, trial.config.sweep.metric))
    if found is not None and found.state == "failed":
        return TrialResult(**fixed, state="failed", reason=found.reason)
    return TrialResult(**fixed, state="failed", reason=reason(error) if error is not None else "it never ran")


def _stopped(last: TrialState, metric: str) -> dict[str, Any]:
    seen = last.samples_seen or 0
    text = f"others were better after {seen:,} samples"
    if last.value is None:
        return {"reason": text}
    seconds = round(last.seconds or 0.0, 2)
    model = ModelResult(samples_seen=seen, training_seconds=seconds, metrics={metric: last.value})
    return {"reason": f"{text}, where {metric} was {last.value:.1%}", "models": {"pretrain": model}}


def _numbers(out: str) -> dict[str, Any]:
    report = Report.read(out)
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


def metrics_of(report: Report, phase: str) -> dict[str, float]:
    """Return the results of a phase's model by "SET/METRIC"; of benchmark tasks the main metrics and the averages."""
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


def dimensions(config: Config, trials: Iterable[TrialResult]) -> dict[str, list[Any]]:
    """Return the values of each dimension that the trials have, sorted."""
    found: dict[str, list[Any]] = {name: [] for name in config.sweep.space}
    for trial in trials:
        for name, value in trial.settings.items():
            if value not in found[name]:
                found[name].append(value)
    return {name: sorted(values, key=_sort_key) for name, values in found.items()}


def _sort_key(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))
