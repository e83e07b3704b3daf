"""The page `sweep.html`, without scripts or requests.

Names, settings and reasons come from users. The template escapes everything but the plots, in which matplotlib escapes
text, and the page's content policy forbids scripts and requests in any case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from markupsafe import Markup

from orchestrator.report.page import MODEL_NAMES, page_environment, page_style
from orchestrator.sweep.report import figures
from orchestrator.sweep.report.schema import SweepReport
from orchestrator.sweep.report.summary import (
    ModelSummary,
    Setting,
    Spread,
    cost_rows,
    headlines,
    metric_title,
    metrics_shown,
    settings_of,
    value_text,
)

MODEL_TITLES = {**MODEL_NAMES, "finetune": "after the fine-tune epoch"}


@dataclass(frozen=True)
class Line:
    """One model of a setting in the table; `best` marks, by metric, the highest mean among models of that phase."""

    model: str
    samples_seen: float
    values: list[Spread | None]
    best: list[bool]


@dataclass(frozen=True)
class PaperRow:
    """A row of a paper's table: ImageNet zero-shot top-1 in percent, and after a fine-tune epoch if there is one."""

    what: str
    pairs: str
    cost: str
    top1: float
    finetuned: float | None = None


@dataclass(frozen=True)
class Paper:
    """A paper's own results: `source` names the table, `setup` says what was trained, `cost` titles its column."""

    method: str
    arxiv: str
    source: str
    setup: str
    cost: str
    rows: tuple[PaperRow, ...]


PAPERS = (
    Paper(
        "WFPP",
        "2410.10879",
        "the table in the authors’ README",
        "CC12M, ViT-B-16, 30 epochs; the fine-tune epoch is on all pairs",
        "samples seen",
        (
            PaperRow("full", "9.30M", "1.00×", 34.8),
            PaperRow("random 50%", "4.65M", "0.53×", 28.2, 30.2),
            PaperRow("WFPP 50%", "4.65M", "0.53×", 29.8, 31.3),
            PaperRow("WFPP 60%", "5.58M", "0.63×", 32.3, 33.3),
            PaperRow("WFPP 70%", "6.51M", "0.73×", 33.4, 34.4),
            PaperRow("WFPP 80%", "7.44M", "0.83×", 34.3, 35.0),
            PaperRow("WFPP 90%", "8.37M", "0.93×", 34.9, 35.5),
        ),
    ),
    Paper(
        "DBP",
        "2401.04578",
        "the paper’s figure 1",
        "LAION, ViT-B/32, 32 epochs; SemDeDup, the CLIP score and DBP start from LAION-CAT-440M",
        "training cost",
        (
            PaperRow("OpenCLIP, LAION-400M", "400M", "100%", 62.96),
            PaperRow("LAION-CAT-440M", "440M", "100%", 64.09),
            PaperRow("SemDeDup", "277M", "69.3%", 64.31),
            PaperRow("SemDeDup, CLIP score", "166M", "41.6%", 61.63),
            PaperRow("SemDeDup, DBP", "166M", "41.6%", 65.44),
            PaperRow("SemDeDup, DBP", "112M", "27.7%", 64.07),
            PaperRow("SemDeDup, DBP", "84M", "20.8%", 62.53),
        ),
    ),
)


def render(report: SweepReport) -> str:
    """Return the page; everything in `report` is escaped."""
    settings = settings_of(report)
    metrics, costs = metrics_shown(report, settings), cost_rows(settings)
    grid = figures.grid_of(settings, report.metric, report.dimensions)
    longest = max((row.total for row in costs), default=0.0) or 1.0
    environment = page_environment("orchestrator.sweep.report", "orchestrator.report")
    environment.filters |= {
        "spread": spread_text,
        "hours": partial(hours_text, digits=max(0, 2 - math.floor(math.log10(longest)))),
        "value": value_text,
    }
    return environment.get_template("sweep.html.j2").render(
        report=report,
        style=page_style(environment),
        headlines=headlines(report),
        started=datetime.fromisoformat(report.started).astimezone(UTC),
        metric=metric_title(report.metric),
        # a heading may break between words only
        metrics=[metric_title(name).replace("-", "\N{NON-BREAKING HYPHEN}") for name in metrics],
        lines=table_lines(settings, metrics),
        plots=_plots(report, settings, grid),
        grid=grid,
        costs=costs,
        longest=longest,
        unfinished=[trial for trial in report.trials if trial.state != "finished"],
        model_titles=MODEL_TITLES,
        papers=PAPERS,
    )


def spread_text(value: Spread) -> str:
    """Return mean and deviation in percent, as in the papers: 12.34 ± 0.42."""
    mean = f"{100 * value.mean:.2f}"
    return mean if value.std is None else f"{mean} ± {100 * value.std:.2f}"


def hours_text(hours: float, digits: int) -> str:
    """Return hours with a number of decimals that suits all of a table."""
    return f"{hours:,.{digits}f}"


def table_lines(settings: Sequence[Setting], metrics: Sequence[str]) -> list[tuple[Setting, list[Line]]]:
    """Return the rows of the table: each setting with a line for each of its models."""
    highest: dict[tuple[str, str], float] = {}
    for setting in settings:
        for name, model in setting.models.items():
            for metric, spread in model.metrics.items():
                highest[name, metric] = max(spread.mean, highest.get((name, metric), -math.inf))

    return [
        (setting, [_line(name, model, metrics, highest) for name, model in setting.models.items()])
        for setting in settings
    ]


def _line(name: str, model: ModelSummary, metrics: Sequence[str], highest: Mapping[tuple[str, str], float]) -> Line:
    values = [model.metrics.get(metric) for metric in metrics]
    best = [
        value is not None and value.mean == highest[name, metric] for value, metric in zip(values, metrics, strict=True)
    ]
    return Line(name, model.samples_seen, values, best)


def _plots(report: SweepReport, settings: Sequence[Setting], grid: figures.Grid | None) -> dict[str, Any]:
    """Return the plots that have data: `cost`, `kept` by model, and `map`."""
    measured = [setting for setting in settings if setting.last and report.metric in setting.last.metrics]
    if not measured:
        return {}
    sized = [setting for setting in measured if setting.kept_fraction is not None]
    models = dict.fromkeys(
        name for setting in sized for name, model in setting.models.items() if report.metric in model.metrics
    )
    # names of models are ours and not a user's, so they may be part of an id
    kept = {name: figures.against_kept(f"kept-{name}", sized, report.metric, name) for name in models}
    return {
        "cost": Markup(figures.against_cost(settings, report.metric, report.device)),
        "kept": {name: Markup(plot) for name, plot in kept.items()},
        "map": Markup(figures.heat_map(grid, report.metric)) if grid else None,
    }
