"""What a sweep says: finished trials grouped over their seeds, which of them are worth their cost, and what pruning
spent against what training saved. Costs are device-hours. Where trials train on cores, pruning counts all cores of the
cluster; where they train on GPUs, it counts as though a trial's GPUs waited for it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from orchestrator.engine.stopwatch import duration
from orchestrator.report.summary import Headline
from orchestrator.sweep.schema import AVERAGE, SweepReport, TrialResult

# those of the table, where measured
METRICS = {
    "zero_shot/top1": "zero-shot top-1",
    "zero_shot/top5": "zero-shot top-5",
    "retrieval/text_to_image_recall_at_1": "text to image R@1",
    "retrieval/image_to_text_recall_at_1": "image to text R@1",
}
# what a dimension that says how many pairs are kept ends with
KEEP = ("keep_fraction", "keep_pairs")
# random controls of one size may differ by some pairs where those of the trials they are compared with do
SAME_SIZE = 0.02


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; None of one seed."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class ModelSummary:
    """A model over seeds: samples, wall seconds and device-hours of training, and hours of pruning and training
    together."""

    samples_seen: float
    training_seconds: float
    training_hours: Spread
    hours: Spread
    metrics: dict[str, Spread]


@dataclass(frozen=True)
class Setting:
    """Finished trials that differ in their seed only; `series` is the label without how many pairs are kept."""

    label: str
    series: str
    control: Literal["full", "random"] | None
    settings: dict[str, Any]
    num_seeds: int
    pairs: float | None
    kept_fraction: float | None
    pruning_seconds: float
    pruning_hours: Spread
    models: dict[str, ModelSummary]

    @property
    def last(self) -> ModelSummary | None:
        """The model that its training ends with."""
        return list(self.models.values())[-1] if self.models else None


@dataclass(frozen=True)
class CostRow:
    """What a setting costs, in device-hours; against the full control where there is one."""

    setting: Setting
    pruning: float
    training: float
    full: float | None

    @property
    def total(self) -> float:
        return self.pruning + self.training

    @property
    def share(self) -> float | None:
        """Of what the full control costs."""
        return self.total / self.full if self.full else None

    @property
    def saved(self) -> float | None:
        """Hours of training that the full control takes beyond this; pruning is not counted."""
        return None if self.full is None else self.full - self.training


def metric_title(name: str) -> str:
    """A metric as a reader calls it."""
    plain = (
        name.removeprefix("retrieval/")
        .removeprefix("tasks/")
        .replace("_recall_at_", " R@")
        .replace("/", ", ")
        .replace("_", " ")
    )
    return METRICS.get(name, plain)


def value_text(value: Any) -> str:
    """A value of a dimension, lists joined by commas."""
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_names(dimensions: Iterable[str]) -> dict[str, str]:
    """Each dimension by the end of its path, with as much of it as tells it from the others."""
    paths = {name: name.split(".") for name in dimensions}

    def short(name: str) -> str:
        for length in range(1, len(paths[name])):
            end = paths[name][-length:]
            if sum(path[-length:] == end for path in paths.values()) == 1:
                return ".".join(end)
        return name

    return {name: short(name) for name in paths}


def is_keep(dimension: str) -> bool:
    """Whether a dimension says how many pairs are kept."""
    return dimension.split(".")[-1] in KEEP


def settings_of(report: SweepReport) -> list[Setting]:
    """The finished trials, grouped: the full control, random ones by size, then others in the dimensions' order."""
    finished = [trial for trial in report.trials if trial.state == "finished"]
    full = [trial for trial in finished if trial.control == "full"]
    pruned: dict[str, list[TrialResult]] = {}
    for trial in finished:
        if trial.control is None:
            pruned.setdefault(json.dumps(trial.settings, sort_keys=True, default=str), []).append(trial)
    groups = sorted(pruned.values(), key=lambda trials: _place(report, trials[0]))
    return [_setting(report, trials) for trials in ([full] if full else []) + _random(finished) + groups]


def _random(finished: Sequence[TrialResult]) -> list[list[TrialResult]]:
    groups: list[list[TrialResult]] = []
    for trial in sorted((each for each in finished if each.control == "random"), key=lambda each: each.pairs or 0):
        last = groups[-1] if groups else []
        near = last and (trial.pairs or 0) <= (last[0].pairs or 0) * (1 + SAME_SIZE)
        if near and trial.seed not in {other.seed for other in last}:
            last.append(trial)
        else:
            groups.append([trial])
    return groups


def _place(report: SweepReport, trial: TrialResult) -> list[int]:
    return [
        values.index(trial.settings[name]) if trial.settings.get(name) in values else len(values)
        for name, values in report.dimensions.items()
    ]


def _setting(report: SweepReport, trials: list[TrialResult]) -> Setting:
    first, names = trials[0], short_names(report.dimensions)
    told = {name: _told(names.get(name, name), value) for name, value in first.settings.items()}
    series = ", ".join(text for name, text in told.items() if not is_keep(name)) or "pruned"
    label = ", ".join(told.values()) or "as configured"
    kept = _mean(trial.kept_fraction for trial in trials)
    if first.control:
        series = first.control
        label = "random" + (f" {kept:.3g}" if kept is not None else "") if first.control == "random" else "full"
    return Setting(
        label=label,
        series=series,
        control=first.control,
        settings=first.settings,
        num_seeds=len(trials),
        pairs=_mean(trial.pairs for trial in trials),
        kept_fraction=kept,
        pruning_seconds=fmean(trial.pruning_seconds or 0.0 for trial in trials),
        pruning_hours=_spread([_pruning_hours(report, trial) for trial in trials]),
        models={name: _model(report, trials, name) for name in dict.fromkeys(n for t in trials for n in t.models)},
    )


def _told(name: str, value: Any) -> str:
    return value_text(value) if isinstance(value, str | list | tuple) else f"{name} {value_text(value)}"


def _model(report: SweepReport, trials: Sequence[TrialResult], name: str) -> ModelSummary:
    found = [(trial, trial.models[name]) for trial in trials if name in trial.models]
    training = [model.training_seconds * report.devices / 3600 for _, model in found]
    pruning = [_pruning_hours(report, trial) for trial, _ in found]
    values: dict[str, list[float]] = {}
    for _, model in found:
        for metric, value in model.metrics.items():
            if math.isfinite(value):
                values.setdefault(metric, []).append(value)
    return ModelSummary(
        samples_seen=fmean(model.samples_seen for _, model in found),
        training_seconds=fmean(model.training_seconds for _, model in found),
        training_hours=_spread(training),
        hours=_spread([sum(both) for both in zip(training, pruning, strict=True)]),
        metrics={metric: _spread(each) for metric, each in values.items()},
    )


def _pruning_hours(report: SweepReport, trial: TrialResult) -> float:
    held = report.cores if report.device == "core" else report.devices
    return (trial.pruning_seconds or 0.0) * held / 3600


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, metric) that no other one beats: none costs as little and measures as much, and
    better in one of the two. By rising cost; equal points stand together."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def metrics_shown(report: SweepReport, settings: Sequence[Setting]) -> list[str]:
    """The metrics of the table: the headline ones, the one that trials are compared by and the averages over benchmark
    tasks, where measured."""
    measured = {metric for setting in settings for model in setting.models.values() for metric in model.metrics}
    averages = sorted(metric for metric in measured if metric.startswith(AVERAGE))
    return [metric for metric in dict.fromkeys((*METRICS, report.metric, *averages)) if metric in measured]


def cost_rows(settings: Sequence[Setting]) -> list[CostRow]:
    """Pruning and training of each setting up to its last model, against the full control up to the same one."""
    full = next((setting for setting in settings if setting.control == "full"), None)
    rows = []
    for setting in settings:
        if setting.last:
            name = list(setting.models)[-1]
            against = (full.models.get(name) or full.last) if full else None
            hours = against.hours.mean if against else None
            rows.append(CostRow(setting, setting.pruning_hours.mean, setting.last.training_hours.mean, hours))
    return rows


def best_setting(report: SweepReport, settings: Sequence[Setting]) -> Setting | None:
    """The setting whose last model has the highest mean of the sweep's metric; a control only if nothing else has."""
    measured = [setting for setting in settings if setting.last and report.metric in setting.last.metrics]
    candidates = [setting for setting in measured if setting.control is None] or measured
    return max(candidates, key=lambda setting: _last_value(setting, report.metric), default=None)


def _last_value(setting: Setting, metric: str) -> float:
    assert setting.last is not None, "only settings with a model are compared"
    return setting.last.metrics[metric].mean


def headlines(report: SweepReport) -> list[Headline]:
    """Three to five numbers: the best setting, what it cost, how many trials finished, what was shared, the time."""
    settings = settings_of(report)
    states = [trial.state for trial in report.trials]
    failed = ", ".join(f"{states.count(state)} {state}" for state in ("stopped", "failed") if state in states)
    rows = [
        *_best_headlines(report, settings),
        Headline("trials finished", f"{states.count('finished')} of {len(states)}", failed),
    ]
    if report.sharing:
        computed, needed = (sum(getattr(stage, key) for stage in report.sharing) for key in ("computed", "needed"))
        rows.append(
            Headline("stages computed", f"{computed} of {needed}", "needed before training; the rest was shared")
        )
    times = (
        "" if not report.resumed else ", resumed once" if report.resumed == 1 else f", resumed {report.resumed} times"
    )
    return [*rows, Headline("wall time", duration(report.wall_seconds), f"on {report.cores} cores{times}")]


def _best_headlines(report: SweepReport, settings: Sequence[Setting]) -> list[Headline]:
    best = best_setting(report, settings)
    if best is None:
        return []
    value = _last_value(best, report.metric)
    rows = [Headline(metric_title(report.metric), f"{value:.1%}", f"best: {best.label}")]
    full = next((row for row in cost_rows(settings) if row.setting.control == "full"), None)
    cost = next(row for row in cost_rows(settings) if row.setting is best)
    if full and full.setting is not best and cost.share is not None and full.setting.last:
        against = full.setting.last.metrics.get(report.metric)
        points = f"{100 * (value - against.mean):+.1f} points against full training" if against else ""
        rows.append(Headline("of the full cost", f"{cost.share:.0%}", points))
    return rows
