"""Draw the report's plots as inline SVG.

Colours are CSS variables of the page, so a plot follows its light or dark colour scheme. Text stays text, in the page's
fonts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

from orchestrator.report.schema import PhaseReport, Words

# placeholder colours, which the SVG must not use otherwise; `_inline` replaces them with the CSS colours below
INK, GRID, BEFORE, AFTER, THIRD, PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f", "#101112"
CSS = {INK: "currentColor", GRID: "var(--rule)", BEFORE: "var(--muted)", AFTER: "var(--accent)", THIRD: "var(--second)"}
CSS |= {PAPER: "var(--paper)"}
# a colour scale from 0 to 1; its lowest colour still differs from the background
RAMP = [f"#1314{step:02x}" for step in range(16)]
CSS |= {
    colour: f"color-mix(in oklab, var(--accent) {100 * step / (len(RAMP) - 1):.3g}%, var(--gone))"
    for step, colour in enumerate(RAMP)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}
INCHES = (5.2, 2.9)
PHASE_NAMES = {"pretrain": "pre-training", "finetune": "fine-tuning"}


def word_frequency(words: Words) -> str:
    """Plot occurrences over rank, log-log, before and after pruning."""

    def draw(axes: Axes) -> None:
        for label, statistics, colour in (
            ("before pruning", words.before, BEFORE),
            ("after pruning", words.after, AFTER),
        ):
            if statistics.curve:
                axes.plot(*zip(*statistics.curve, strict=True), color=colour, label=label)
        axes.set(xscale="log", yscale="log", xlabel="rank of the word by frequency", ylabel="occurrences")
        count_axis(axes.xaxis)
        count_axis(axes.yaxis)
        axes.legend(loc="upper right")

    return svg("words", draw)


def kept_by_frequency(words: Words, kept_fraction: float) -> str:
    """Plot the share of occurrences kept in each frequency band, with the share of pairs kept as a line."""

    def draw(axes: Axes) -> None:
        middles = [(band.at_least * band.below) ** 0.5 for band in words.bands]
        axes.plot(
            middles,
            [band.after / band.before for band in words.bands],
            color=AFTER,
            marker="o",
            markersize=4,
            label="occurrences kept",
        )
        axes.axhline(kept_fraction, color=BEFORE, linestyle=(0, (4, 3)), linewidth=1.2, label="pairs kept")
        axes.set(xscale="log", ylim=(0, 1.04), xlabel="occurrences of a word before pruning", ylabel="share kept")
        count_axis(axes.xaxis)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.legend(loc="lower left", ncols=2)

    return svg("bands", draw)


def loss_curves(phases: dict[str, PhaseReport]) -> str:
    """Plot the loss over samples seen, one phase after the other."""

    def draw(axes: Axes) -> None:
        start = 0
        for (name, phase), colour in zip(phases.items(), (AFTER, THIRD), strict=False):
            seen = [start + point.samples_seen for point in phase.curve]
            axes.plot(seen, [point.loss for point in phase.curve], color=colour, linewidth=1.6, label=PHASE_NAMES[name])
            start += phase.samples_seen
        axes.set(xlabel="samples seen", ylabel="contrastive loss", xlim=(0, None))
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.legend(loc="upper right", ncols=2)

    return svg("loss", draw)


def count_axis(axis: Any) -> None:
    """Set a few short labels on a logarithmic axis of counts."""
    low, high = axis.get_view_interval()
    # less than two decades have at most two powers of ten
    steps = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=7))
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def short(value: float, _position: int | None = None) -> str:
    """Format a number for an axis label. The second argument is the tick position that matplotlib passes."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):,.4g}{letter}"
    return f"{value:,.4g}"


def svg(name: str, draw: Callable[[Axes], None]) -> str:
    """Return a plot as an SVG element; its ids begin with `name`, to be unique in the page."""
    out = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=INCHES, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(out.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    for colour, variable in CSS.items():
        svg = svg.replace(colour, variable)
    # ids must be unique in the whole page
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'font: ([\d.]+)px [^;"]+', r"font-size: \1px", svg)
    start = svg.index(">")
    # the page sets the width; the viewBox keeps the aspect ratio
    return re.sub(r' (width|height)="[^"]*"', "", svg[:start]) + svg[start:]
