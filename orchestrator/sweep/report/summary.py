"""Statistics of a sweep: finished trials grouped over their seeds, the Pareto front, and the cost of pruning against
the training that it saves.

Costs are device-hours. If trials train on cores, pruning counts all cores of the cluster; if they train on GPUs, it
counts a trial's GPUs, as if they waited for it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from orchestrator.engine.stopwatch import duration
from orchestrator.report.summary import Headline
from orchestrator.sweep.report.schema import AVERAGE, SweepReport, TrialResult

# the headline metrics: columns of the table if they were measured
METRICS = {
    "zero_shot/top1": "zero-shot top-1",
    "zero_shot/top5": "zero-shot top-5",
    "retrieval/text_to_image_recall_at_1": "text to image R@1",
    "retrieval/image_to_text_recall_at_1": "image to text R@1",
}
# a dimension with one of these last names sets how many pairs are kept
KEEP = ("keep_fraction", "keep_pairs")
# relative: the keep lists of two seeds may differ by a few pairs, and so do the random controls made for them
SAME_SIZE = 0.02


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation of a single seed is None."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class ModelSummary:
    """A model over seeds: the samples seen, the wall seconds and device-hours of training, and the device-hours of
    pruning and training together."""

    samples_seen: float
    training_seconds: float
    training_hours: Spread
    hours: Spread
    metrics: dict[str, Spread]


@dataclass(frozen=True)
class Setting:
    """Finished trials that differ only in their seed; `series` is the label without the number of pairs kept."""

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
        """The model after the last phase of training; None without any."""
        return list(self.models.values())[-1] if self.models else None


@dataclass(frozen=True)
class CostRow:
    """The device-hours of a setting; `full`: those of the full control, None without one."""

    setting: Setting
    pruning: float
    training: float
    full: float | None

    @property
    def total(self) -> float:
        """Pruning and training."""
        return self.pruning + self.training

    @property
    def share(self) -> float | None:
        """The cost as a fraction of the full control's."""
        return self.total / self.full if self.full else None

    @property
    def saved(self) -> float | None:
        """How many hours of training fewer than the full control takes; pruning is not counted."""
        return None if self.full is None else self.full - self.training


def metric_title(name: str) -> str:
    """Return the title of a metric."""
    plain = name.removeprefix("retrieval/").removeprefix("tasks/").replace("_recall_at_", " R@")
    return METRICS.get(name, plain.replace("/", ", ").replace("_", " "))


def value_text(value: Any) -> str:
    """Return the text of a value of a dimension; lists are joined by commas."""
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_names(dimensions: Iterable[str]) -> dict[str, str]:
    """Return the shortest end of each dimension's path that no other dimension shares."""
    paths = {name: name.split(".") for name in dimensions}

    def short(name: str) -> str:
        for length in range(1, len(paths[name])):
            end = paths[name][-length:]
            if sum(path[-length:] == end for path in paths.values()) == 1:
                return ".".join(end)
        return name

    return {name: short(name) for name in paths}


def is_keep(dimension: str) -> bool:
    """Whether a dimension sets how many pairs are kept."""
    return dimension.split(".")[-1] in KEEP


def settings_of(report: SweepReport) -> list[Setting]:
    """Group the finished trials: the full control, random controls by size, then others in the order of dimensions."""
    finished = [trial for trial in report.trials if trial.state == "finished"]
    full = [trial for trial in finished if trial.control == "full"]
    pruned: dict[str, list[TrialResult]] = {}
    for trial in finished:
        if trial.control is None:
            pruned.setdefault(json.dumps(trial.settings, sort_keys=True, default=str), []).append(trial)
    groups = sorted(pruned.values(), key=lambda trials: _position(report, trials[0]))
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


def _position(report: SweepReport, trial: TrialResult) -> list[int]:
    return [
        values.index(trial.settings[name]) if trial.settings.get(name) in values else len(values)
        for name, values in report.dimensions.items()
    ]


def _setting(report: SweepReport, trials: list[TrialResult]) -> Setting:
    first, names = trials[0], short_names(report.dimensions)
    texts = {name: _setting_text(names.get(name, name), value) for name, value in first.settings.items()}
    series = ", ".join(text for name, text in texts.items() if not is_keep(name)) or "pruned"
    label = ", ".join(texts.values()) or "as configured"
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


def _setting_text(name: str, value: Any) -> str:
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
    num_devices = report.cores if report.device == "core" else report.devices
    return (trial.pruning_seconds or 0.0) * num_devices / 3600


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto front of points (cost, metric), by rising cost.

    No other point is at least as good in both and better in one. Equal points are on the front together."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def metrics_shown(report: SweepReport, settings: Sequence[Setting]) -> list[str]:
    """Return the measured metrics that the table shows: the headline metrics, the sweep's own metric and averages over
    benchmark tasks."""
    measured = {metric for setting in settings for model in setting.models.values() for metric in model.metrics}
    averages = sorted(metric for metric in measured if metric.startswith(AVERAGE))
    return [metric for metric in dict.fromkeys((*METRICS, report.metric, *averages)) if metric in measured]


def cost_rows(settings: Sequence[Setting]) -> list[CostRow]:
    """Return the cost of each setting up to its last model, with the full control's cost up to the same phase."""
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
    """Return the setting with the highest mean of the sweep's metric for its last model; None if none was measured.

    A control is returned only if no other setting was measured."""
    measured = [setting for setting in settings if setting.last and report.metric in setting.last.metrics]
    candidates = [setting for setting in measured if setting.control is None] or measured
    return max(candidates, key=lambda setting: _last_value(setting, report.metric), default=None)


def _last_value(setting: Setting, metric: str) -> float:
    assert setting.last is not None, "only settings with a model are compared"
    return setting.last.metrics[metric].mean


def headlines(report: SweepReport) -> list[Headline]:
    """Return two to five numbers: the best setting, its cost, the trials finished, the stages computed, the time."""
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
            Headline("stages computed", f"{computed} of {needed}", "needed before training; the others were shared")
        )
    resumed = {0: "", 1: ", resumed once"}.get(report.resumed, f", resumed {report.resumed} times")
    return [*rows, Headline("wall time", duration(report.wall_seconds), f"on {report.cores} cores{resumed}")]


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
