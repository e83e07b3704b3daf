"""Render `report.html`: one self-contained page without scripts or network requests.

Captions, keys and names are untrusted text from the web. The templates escape everything except our own plots, and the
page's Content-Security-Policy blocks scripts and requests in any case."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.config.flatten import flattened
from orchestrator.engine.stopwatch import duration
from orchestrator.report import cluster_figures
from orchestrator.report.figures import PHASE_NAMES, kept_by_frequency, loss_curves, word_frequency
from orchestrator.report.schema import ModelEvaluation, Report, TaskAverage, TaskResult, TaskTable
from orchestrator.report.summary import headlines
from orchestrator.report.thumbnails import Thumbnails

MODEL_NAMES = {"pretrain": "pre-trained", "finetune": "fine-tuned", "checkpoint": "checkpoint"}
GROUP_TITLES = {
    "highest": "Kept, farthest from the threshold",
    "above": "Kept, just inside the threshold",
    "below": "Pruned, just outside the threshold",
    "lowest": "Pruned, farthest from the threshold",
    "kept": "Kept",
    "pruned": "Pruned",
}
# other reasons are shown by their key
REASONS = {
    "duplicate": "near-duplicate of an earlier pair",
    "no_embedding": "no embedding",
    "below_the_cut": "outside the budget",
    "no_score": "no score",
    "low_score": "score below the threshold",
    "not_on_the_list": "not on the list",
    "no_entry": "caption contains no metadata entry",
    "balanced_out": "dropped to balance the metadata entries",
    "size_unknown": "unknown image size",
    "too_elongated": "image too elongated",
    "other_language": "caption in another language",
}
CLUSTER_TITLES = {
    "complexity": ("Densest clusters: lowest complexity", "Most complex clusters"),
    "d_intra": ("Densest clusters: lowest d_intra", "Most spread-out clusters"),
}
RECALL_WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class ResultRow:
    """A row of the evaluation table: the chance level, and each model's value (None: not measured)."""

    label: str
    chance: float | None
    values: list[float | None]


@dataclass(frozen=True)
class TaskRow:
    """A row of the task table: each model's main metric, and the last model's result and other metrics."""

    result: TaskResult
    values: list[float | None]
    others: dict[str, float]


@dataclass(frozen=True)
class AverageRow:
    """A row of the averages over tasks: the number of tasks, and each model's value."""

    average: TaskAverage
    values: list[float | None]


def render(report: Report, thumbnails: Thumbnails) -> str:
    """Return the page as HTML. Everything in `report` is escaped."""
    environment = page_environment("orchestrator.report")
    environment.filters |= {
        "score": "{:.4g}".format,
        "decimals": "{:.3f}".format,
        "reason": lambda name: REASONS.get(name, name.replace("_", " ")),
        "settings": settings_text,
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        thumbnails=thumbnails,
        style=page_style(environment),
        headlines=headlines(report),
        figures=_figures(report),
        plots=_step_plots(report),
        model_names=MODEL_NAMES,
        phase_names=PHASE_NAMES,
        group_titles=GROUP_TITLES,
        cluster_titles=CLUSTER_TITLES,
        results=result_rows(report.evaluation),
        task_rows=task_rows(report.tasks),
        average_rows=average_rows(report.tasks),
        started=datetime.fromisoformat(report.started).astimezone(UTC),
        longest=max((stage.computed_seconds for stage in report.stages), default=0.0) or 1.0,
        kept_fraction=_kept_fraction(report),
    )


def page_environment(*packages: str) -> Environment:
    """Return a Jinja environment for the packages' templates, with autoescaping and the filters shared by all pages."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ".") for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,.0f}".format,
        "percent": percent,
        "duration": duration,
        "json": partial(json.dumps, indent=2, ensure_ascii=False, default=str),
    }
    return environment


def page_style(environment: Environment) -> Markup:
    """Return the style sheet shared by all pages."""
    return Markup(environment.get_template("style.css").render())


def percent(value: float, digits: int = 1) -> str:
    """Format a fraction as a percentage."""
    return f"{value:.{digits}%}"


def settings_text(settings: dict[str, Any]) -> str:
    """Return a step's settings on one line, without unset and overridden settings."""
    hidden = {"method", "keep_fraction"} if settings.get("keep_pairs") else {"method"}
    shown = {name: value for name, value in flattened(settings).items() if value not in (None, {})}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if name not in hidden)


def _kept_fraction(report: Report) -> float:
    return report.steps[-1].pairs_out / max(1, report.steps[0].pairs_in) if report.steps else 1.0


def _figures(report: Report) -> dict[str, Markup]:
    # our own plots are the only markup that is not escaped; they contain no text from the pool
    figures: dict[str, Markup] = {}
    if report.words is not None and report.words.bands:
        figures["words"] = Markup(word_frequency(report.words))
        figures["bands"] = Markup(kept_by_frequency(report.words, _kept_fraction(report)))
    if report.training:
        figures["loss"] = Markup(loss_curves(report.training))
    return figures


def _step_plots(report: Report) -> dict[str, dict[str, Markup]]:
    # ids use a number, because a step's name is free text from the configuration
    plots: dict[str, dict[str, Markup]] = {step.name: {} for step in report.steps}
    for number, (step, found) in enumerate(report.duplicates.items()):
        if found.similarity.counts:
            plots[step]["similarity"] = Markup(cluster_figures.similarity(f"similarity{number}", found))
    for number, (step, pruning) in enumerate(report.clusters.items()):
        if pruning.ordered_by == "complexity":
            plots[step]["density"] = Markup(cluster_figures.density(f"density{number}", pruning.clusters))
            plots[step]["quota"] = Markup(cluster_figures.quota(f"quota{number}", pruning.clusters))
    return plots


def result_rows(evaluation: dict[str, ModelEvaluation]) -> list[ResultRow]:
    """Return the rows of the evaluation table: one per metric, with a value per model."""
    shots = [model.zero_shot for model in evaluation.values()]
    classes = next((shot.num_classes for shot in shots if shot), None)
    rows = []
    if classes:
        for name, label, tries in (
            ("top1", "zero-shot top-1", 1),
            ("top5", "zero-shot top-5", 5),
            ("mean_per_class", "zero-shot, mean per class", 1),
        ):
            values = [getattr(shot, name) if shot else None for shot in shots]
            rows.append(ResultRow(label, min(1.0, tries / classes), values))
    return rows + _recall_rows(evaluation)


def task_rows(tables: dict[str, TaskTable]) -> list[TaskRow]:
    """Return the rows of the task table: one per task, with a value per model."""
    by_model = [{result.key: result for result in table.results} for table in tables.values()]
    return [
        TaskRow(
            result=result,
            values=[results[key].value for results in by_model],
            others={name: value for name, value in sorted(result.metrics.items(), key=_by_k) if name != result.metric},
        )
        for key, result in (by_model[-1].items() if by_model else ())
    ]


def _by_k(metric: tuple[str, float]) -> tuple[str, int]:
    name, _, k = metric[0].partition("@")
    return name, int(k or 0)


def average_rows(tables: dict[str, TaskTable]) -> list[AverageRow]:
    """Return the averages over groups of tasks and over all tasks, with a value per model."""
    rows = zip(*(table.averages for table in tables.values()), strict=True)
    return [AverageRow(same[-1], [average.value for average in same]) for same in rows]


def _recall_rows(evaluation: dict[str, ModelEvaluation]) -> list[ResultRow]:
    recalls = [model.retrieval or {} for model in evaluation.values()]
    num_pairs = next((recall["num_pairs"] for recall in recalls if recall), None)
    if not num_pairs:
        return []
    return [
        ResultRow(
            f"{title}, recall@{k}", min(1.0, k / num_pairs), [recall.get(f"{way}_recall_at_{k}") for recall in recalls]
        )
        for way, title in RECALL_WAYS.items()
        for k in RECALL_AT
    ]
