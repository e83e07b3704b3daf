"""The plots of a sweep: what a metric costs, what it gives for a fraction of the pairs, and how two dimensions meet.
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
# more lines than these are drawn alike
MOST_SERIES = 6
# more values of a dimension than these make no map
MOST_CELLS = 12
LONGEST_LABEL = 24
DASHED: Any = (0, (4, 3))
# a dark cell has its number in the paper's colour
DARK = 0.55


@dataclass(frozen=True)
class Look:
    """How the marks of a series are drawn, and what the legend calls them."""

    label: str
    colour: str
    marker: str
    size: float = 6.0


@dataclass(frozen=True)
class Grid:
    """The best of a metric at each pair of values of two numeric dimensions; NaN where nothing was measured.
    Shape of `values`: (len(rows), len(columns))."""

    column_name: str
    row_name: str
    columns: list[float]
    rows: list[float]
    values: np.ndarray


def against_cost(settings: Sequence[Setting], metric: str, unit: str) -> str:
    """The metric of each setting's last model against its device-hours, and the front that nothing else beats."""
    shown = [setting for setting in settings if setting.last and metric in setting.last.metrics]

    def draw(axes: Axes) -> None:
        looks, told = _looks(shown, metric), set[Look]()
        points = [_cost_point(setting, metric) for setting in shown]
        front = pareto([(cost.mean, value.mean) for cost, value in points])
        steps = [(points[index][0].mean, points[index][1].mean) for index in front]
        for setting, (cost, value) in zip(shown, points, strict=True):
            _mark(axes, looks[_key(setting)], told, cost, value)
        right = max(cost.mean + (cost.std or 0.0) for cost, _ in points) * 1.06 or 1.0
        for index, place in zip(front, steps, strict=True):
            # equal ones stand together on the front
            if index == front[0] or place != steps[front.index(index) - 1]:
                _tell_kept(axes, shown[index], place)
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
    """The metric of one model, such as "pretrain", against the fraction of pairs kept, a line for each series."""

    def draw(axes: Axes) -> None:
        looks, told = _looks(settings, metric), set[Look]()
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
                _mark(axes, look, told, Spread(kept, None), value)
        axes.set(xlabel="pairs kept, of the pool", ylabel=metric_title(metric), ylim=_limits(settings, metric))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda kept, _: f"{100 * kept:.3g}%"))
        _finish(axes)

    return svg(name, draw)


def heat_map(grid: Grid, metric: str) -> str:
    """The grid as cells, each with its number, stronger in colour for more."""

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
    """The last model's metric over two numeric dimensions, first the fraction kept if it is one; None where there are
    not two, or too many values. A third dimension is not shown: a cell is the best over it."""
    found = {name: values for name, values in dimensions.items() if _is_numeric(values)}
    names = sorted(found, key=lambda name: not is_keep(name))[:2]
    if len(names) < 2 or any(len(found[name]) > MOST_CELLS for name in names):
        return None
    columns, rows = (sorted(found[name]) for name in names)
    values = np.full((len(rows), len(columns)), np.nan)
    for setting in settings:
        if setting.last and metric in setting.last.metrics and all(name in setting.settings for name in names):
            place = rows.index(setting.settings[names[1]]), columns.index(setting.settings[names[0]])
            values[place] = np.fmax(values[place], setting.last.metrics[metric].mean)
    shorter = short_names(dimensions)
    return Grid(shorter[names[0]], shorter[names[1]], columns, rows, values) if np.isfinite(values).any() else None


def _is_numeric(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _over(is_dark: bool) -> str:
    return PAPER if is_dark else INK


def _key(setting: Setting) -> str:
    # a setting of somebody's may be called as a control is
    return setting.control or f"setting {setting.series}"


def _series(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    found: dict[str, list[Setting]] = {}
    for setting in settings:
        found.setdefault(_key(setting), []).append(setting)
    return found


def _looks(settings: Sequence[Setting], metric: str) -> dict[str, Look]:
    """By series: the controls in grey, the best few others each with a mark of its own."""
    looks = {"full": Look("full", BEFORE, "*", 11.0), "random": Look("random", BEFORE, "x")}
    others = {key: members for key, members in _series(settings).items() if key not in looks}
    best = sorted(others, key=lambda key: -max(_last_means(others[key], metric), default=0.0))[:MOST_SERIES]
    for place, key in enumerate(key for key in others if key in best):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        looks[key] = Look(_plain(others[key][0].series), colour, marker)
    return dict.fromkeys(others, Look("others", BEFORE, ".")) | looks


def _last_means(settings: Sequence[Setting], metric: str) -> list[float]:
    last = [setting.last for setting in settings]
    return [model.metrics[metric].mean for model in last if model and metric in model.metrics]


def _cost_point(setting: Setting, metric: str) -> tuple[Spread, Spread]:
    assert setting.last is not None, "only settings with a model are drawn"
    return setting.last.hours, setting.last.metrics[metric]


def _tell_kept(axes: Axes, setting: Setting, place: tuple[float, float]) -> None:
    if setting.kept_fraction is not None:
        text = f"{100 * setting.kept_fraction:.3g}%"
        axes.annotate(text, place, (-5, 5), textcoords="offset points", ha="right", va="bottom", fontsize=9)


def _kept_points(settings: Sequence[Setting], metric: str, model: str) -> Iterator[tuple[float, Spread]]:
    for setting in settings:
        found = setting.models.get(model)
        if found and metric in found.metrics and setting.kept_fraction is not None:
            yield setting.kept_fraction, found.metrics[metric]


def _mark(axes: Axes, look: Look, told: set[Look], across: Spread, up: Spread) -> None:
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
        label=None if look in told else look.label,
        zorder=3,
    )
    told.add(look)


def _limits(settings: Sequence[Setting], metric: str) -> tuple[float, float]:
    """The same for all models, so that their plots compare."""
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
    """A user's words as a label: short, printable and no formula; matplotlib takes them for XML by itself."""
    clean = "".join(letter if letter.isprintable() else " " for letter in value_text(text))
    if len(clean) > LONGEST_LABEL:
        # what tells settings apart is often their end
        clean = f"{clean[: LONGEST_LABEL // 2]}…{clean[-(LONGEST_LABEL // 2 - 1) :]}"
    # a label that starts with an underscore is left out of legends
    return (" " + clean if clean.startswith("_") else clean).replace("$", r"\$")
