"""The flat table of a sweep, a row for each trial and model, for notebooks and other tools."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import polars as pl

from orchestrator.sweep.report.schema import ModelResult, SweepReport, TrialResult

TRIAL_COLUMNS: dict[str, Any] = {
    "trial": pl.String,
    "control": pl.String,
    "seed": pl.Int64,
    "state": pl.String,
    "reason": pl.String,
    "model": pl.String,
}
COST_COLUMNS: dict[str, Any] = {
    "pairs": pl.Int64,
    "kept_fraction": pl.Float64,
    "samples_seen": pl.Int64,
    "pruning_seconds": pl.Float64,
    "training_seconds": pl.Float64,
    "pruning_core_hours": pl.Float64,
}


def rows(report: SweepReport) -> list[dict[str, Any]]:
    """Return a row for each trial and model, all with the same keys; a trial without a model has one row.

    Keys: those of `TRIAL_COLUMNS`; one for each dimension, with lists joined by commas; those of `COST_COLUMNS`;
    `training_gpu_hours` or `training_core_hours`; one for each metric. A missing value is None."""
    metrics = _metrics(report)
    return [
        _trial(trial, name)
        | {dimension: _cell(trial.settings.get(dimension)) for dimension in report.dimensions}
        | _cost(report, trial, model)
        | {metric: model.metrics.get(metric) if model else None for metric in metrics}
        for trial in report.trials
        for name, model in trial.models.items() or [(None, None)]
    ]


def parquet(report: SweepReport) -> bytes:
    """Return the same rows as a Parquet file; a dimension with values of several types is a column of text."""
    table = rows(report)
    dimensions = {name: _type([row[name] for row in table]) for name in report.dimensions}
    schema = TRIAL_COLUMNS | dimensions | COST_COLUMNS | {_training_hours(report): pl.Float64}
    schema |= dict.fromkeys(_metrics(report), pl.Float64)
    columns = {name: [row[name] for row in table] for name in schema}
    for name in (name for name, kind in dimensions.items() if kind == pl.String):
        columns[name] = [None if value is None else str(value) for value in columns[name]]
    out = io.BytesIO()
    pl.DataFrame(columns, schema=schema).write_parquet(out)
    return out.getvalue()


def _trial(trial: TrialResult, model: str | None) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "control": trial.control,
        "seed": trial.seed,
        "state": trial.state,
        "reason": trial.reason,
        "model": model,
    }


def _cost(report: SweepReport, trial: TrialResult, model: ModelResult | None) -> dict[str, Any]:
    pruning, training = trial.pruning_seconds, model.training_seconds if model else None
    return {
        "pairs": trial.pairs,
        "kept_fraction": trial.kept_fraction,
        "samples_seen": model.samples_seen if model else None,
        "pruning_seconds": pruning,
        "training_seconds": training,
        "pruning_core_hours": None if pruning is None else pruning * report.cores / 3600,
        _training_hours(report): None if training is None else training * report.devices / 3600,
    }


def _training_hours(report: SweepReport) -> str:
    return f"training_{report.device.lower()}_hours"


def _metrics(report: SweepReport) -> list[str]:
    """Return the names of all metrics, in order of first use."""
    return list(
        dict.fromkeys(metric for trial in report.trials for model in trial.models.values() for metric in model.metrics)
    )


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _type(values: Sequence[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Boolean
    if kinds == {int}:
        return pl.Int64
    return pl.Float64 if kinds and kinds <= {int, float} else pl.String
