"""The plots of a sweep: a metric against its cost, against the fraction of pairs kept, and over two dimensions.

Marks differ in shape as well as in colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import FuncFormatter, PercentFormatter

from orchestrator.report.figures import AFTER, BEFORE, INK, PAPER, RAMP, THIRD, short, svg
from orchestrator.sweep.report.summary import Setting, Spread, is_keep, metric_title, pareto, short_names, value_text

HEIGHT_INCHES = 3.5
COLOURS, MARKERS = (AFTER, THIRD, INK), "osD^vPX"
# beyond these, the lower series share one look
MAX_SERIES = 6
# with more values of a dimension, there is no map
MAX_CELLS = 12
MAX_LABEL_CHARS = 24
DASHED: Any = (0, (4, 3))
# a cell with a higher value, as a share of the range, is dark: its number has the colour of the page
DARK = 0.55


@dataclass(frozen=True)
class Look:
    """How the marks of a series are drawn, and its label in the legend."""

    label: str
    colour: str
    marker: str
    size: float = 6.0


@dataclass(frozen=True)
class Grid:
    """The best value of a metric for each pair of values of two numeric dimensions; NaN where nothing was measured.

    `values` has shape (len(rows), len(columns))."""

    column_name: str
    row_name: str
    columns: list[float]
    rows: list[float]
    values: np.ndarray


def against_cost(settings: Sequence[Setting], metric: str, unit: str) -> str:
    """Return a plot of the metric of each setting's last model against its device-hours, with the Pareto front."""
    shown = [setting for setting in settings if setting.last and metric in setting.last.metrics]

    def draw(axes: Axes) -> None:
        looks, in_legend = _looks(shown, metric), set[Look]()
        points = [_cost_point(setting, metric) for setting in shown]
        front = pareto([(cost.mean, value.mean) for cost, value in points])
        steps = [(points[index][0].mean, points[index][1].mean) for index in front]
        for setting, (cost, value) in zip(shown, points, strict=True):
            _mark(axes, looks[_key(setting)], in_legend, cost, value)
        right = max(cost.mean + (cost.std or 0.0) for cost, _ in points) * 1.06 or 1.0
        for index, point in zip(front, steps, strict=True):
            # of equal points on the front, label the first
            if index == front[0] or point != steps[front.index(index) - 1]:
                _label_kept(axes, shown[index], point)
        axes.step(
            [*(cost for cost, _ in steps), right],
            [*(value for _, value in steps), steps[-1][1]],
            where="post",
            color=BEFORE,
            linewidth=1.2,
            zorder=1,
            label="Pareto front",
        )
        axes.set(xlim=(0, right), xlabel=f"pruning and training, {unit}-hours", ylabel=metric_title(metric))
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        _finish(axes)

    return svg("cost", draw)


def against_kept(name: str, settings: Sequence[Setting], metric: str, model: str) -> str:
    """Return a plot of the metric of one model, such as "pretrain", against the fraction of pairs kept, by series."""

    def draw(axes: Axes) -> None:
        looks, in_legend = _looks(settings, metric), set[Look]()
        for key, members in _series(settings).items():
            found = sorted(_kept_points(members, metric, model), key=lambda point: point[0])
            if key == "full":
                for _, value in found:
                    axes.axhline(value.mean, color=BEFORE, linestyle=DASHED, linewidth=1.2, label="full", zorder=1)
                continue
            look = looks[key]
            axes.plot(
                [kept for kept, _ in found],
                [value.mean for _, value in found],
                color=look.colour,
                linestyle=":" if key == "random" else "-",
                linewidth=1.4,
            )
            for kept, value in found:
                _mark(axes, look, in_legend, Spread(kept, None), value)
        axes.set(xlabel="pairs kept, of the pool", ylabel=metric_title(metric), ylim=_limits(settings, metric))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda kept, _: f"{100 * kept:.3g}%"))
        _finish(axes)

    return svg(name, draw)


def heat_map(grid: Grid, metric: str) -> str:
    """Return a plot of the grid as cells with their values, darker for higher ones."""

    def draw(axes: Axes) -> None:
        known = grid.values[np.isfinite(grid.values)]
        norm = Normalize(known.min(), known.max())
        axes.pcolormesh(
            np.ma.masked_invalid(grid.values), cmap=ListedColormap(RAMP), norm=norm, edgecolors=PAPER, linewidth=1.5
        )
        for (row, column), value in np.ndenumerate(grid.values):
            if np.isfinite(value):
                is_dark = known.max() > known.min() and norm(value) > DARK
                axes.text(column + 0.5, row + 0.5, f"{value:.1%}", ha="center", va="center", color=_over(is_dark))
        axes.set_xticks(np.arange(len(grid.columns)) + 0.5, [f"{value:g}" for value in grid.columns])
        axes.set_yticks(np.arange(len(grid.rows)) + 0.5, [f"{value:g}" for value in grid.rows])
        axes.set(xlabel=_plain(grid.column_name), ylabel=_plain(grid.row_name))
        axes.grid(False)
        axes.spines[:].set_visible(False)

    return svg("map", draw)


def grid_of(settings: Sequence[Setting], metric: str, dimensions: dict[str, list[Any]]) -> Grid | None:
    """Return the metric of the last models over two numeric dimensions, columns being the fraction kept if it is one.

    Return None if there are fewer than two, or too many values. A cell is the best over all other dimensions."""
    found = {name: values for name, values in dimensions.items() if _is_numeric(values)}
    names = sorted(found, key=lambda name: not is_keep(name))[:2]
    if len(names) < 2 or any(len(found[name]) > MAX_CELLS for name in names):
        return None
    columns, rows = (sorted(found[name]) for name in names)
    values = np.full((len(rows), len(columns)), np.nan)
    for setting in settings:
        if setting.last and metric in setting.last.metrics and all(name in setting.settings for name in names):
            cell = rows.index(setting.settings[names[1]]), columns.index(setting.settings[names[0]])
            values[cell] = np.fmax(values[cell], setting.last.metrics[metric].mean)
    shorter = short_names(dimensions)
    return Grid(shorter[names[0]], shorter[names[1]], columns, rows, values) if np.isfinite(values).any() else None


def _is_numeric(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _over(is_dark: bool) -> str:
    return PAPER if is_dark else INK


def _key(setting: Setting) -> str:
    # a user may name a setting like a control
    return setting.control or f"setting {setting.series}"


def _series(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    found: dict[str, list[Setting]] = {}
    for setting in settings:
        found.setdefault(_key(setting), []).append(setting)
    return found


def _looks(settings: Sequence[Setting], metric: str) -> dict[str, Look]:
    """By series: the controls are grey, and the best of the others have different marks."""
    looks = {"full": Look("full", BEFORE, "*", 11.0), "random": Look("random", BEFORE, "x")}
    others = {key: members for key, members in _series(settings).items() if key not in looks}
    best = sorted(others, key=lambda key: -max(_last_means(others[key], metric), default=0.0))[:MAX_SERIES]
    for number, key in enumerate(key for key in others if key in best):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        looks[key] = Look(_plain(others[key][0].series), colour, marker)
    return dict.fromkeys(others, Look("others", BEFORE, ".")) | looks


def _last_means(settings: Sequence[Setting], metric: str) -> list[float]:
    last = [setting.last for setting in settings]
    return [model.metrics[metric].mean for model in last if model and metric in model.metrics]


def _cost_point(setting: Setting, metric: str) -> tuple[Spread, Spread]:
    assert setting.last is not None, "only settings with a model are drawn"
    return setting.last.hours, setting.last.metrics[metric]


def _label_kept(axes: Axes, setting: Setting, point: tuple[float, float]) -> None:
    if setting.kept_fraction is not None:
        text = f"{100 * setting.kept_fraction:.3g}%"
        axes.annotate(text, point, (-5, 5), textcoords="offset points", ha="right", va="bottom", fontsize=9)


def _kept_points(settings: Sequence[Setting], metric: str, model: str) -> Iterator[tuple[float, Spread]]:
    for setting in settings:
        found = setting.models.get(model)
        if found and metric in found.metrics and setting.kept_fraction is not None:
            yield setting.kept_fraction, found.metrics[metric]


def _mark(axes: Axes, look: Look, in_legend: set[Look], across: Spread, up: Spread) -> None:
    axes.errorbar(
        across.mean,
        up.mean,
        xerr=across.std,
        yerr=up.std,
        color=look.colour,
        marker=look.marker,
        markersize=look.size,
        markeredgecolor=look.colour if look.marker == "x" else PAPER,
        markeredgewidth=1.6 if look.marker == "x" else 0.6,
        linestyle="none",
        elinewidth=1.0,
        label=None if look in in_legend else look.label,
        zorder=3,
    )
    in_legend.add(look)


def _limits(settings: Sequence[Setting], metric: str) -> tuple[float, float]:
    """The same limits for all models, because their plots stand side by side."""
    found = [
        model.metrics[metric] for setting in settings for model in setting.models.values() if metric in model.metrics
    ]
    low = min(value.mean - (value.std or 0.0) for value in found)
    high = max(value.mean + (value.std or 0.0) for value in found)
    room = 0.08 * (high - low) or 0.01
    return low - room, high + room


def _finish(axes: Axes) -> None:
    axes.figure.set_size_inches(axes.figure.get_size_inches()[0], HEIGHT_INCHES)  # type: ignore[union-attr]
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    longest = max(map(len, axes.get_legend_handles_labels()[1]))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3 if longest < 14 else 2,
        borderaxespad=0.4,
        handletextpad=0.4,
        columnspacing=1.2,
    )


def _plain(text: str) -> str:
    """Return a user's text as a label: short, printable and without formulas; matplotlib escapes it for XML."""
    clean = "".join(letter if letter.isprintable() else " " for letter in value_text(text))
    if len(clean) > MAX_LABEL_CHARS:
        # labels often differ only at their end
        clean = f"{clean[: MAX_LABEL_CHARS // 2]}…{clean[-(MAX_LABEL_CHARS // 2 - 1) :]}"
    # matplotlib omits labels that start with an underscore from legends
    return (" " + clean if clean.startswith("_") else clean).replace("$", r"\$")
