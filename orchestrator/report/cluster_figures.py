"""Draw the plots for steps that use an embedding: clusters as dots, similarities as a histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import FuncFormatter, PercentFormatter

from orchestrator.report.figures import AFTER, BEFORE, PAPER, RAMP, THIRD, count_axis, short, svg
from orchestrator.report.schema_pairs import Cluster, Duplicates

# dot areas in square points; the whole plot has about 27,000
MEAN_DOT, ALL_DOTS, SMALLEST_DOT = 60.0, 4000.0, 10.0
# axes are logarithmic if the largest cluster is more than this many times the smallest
LINEAR_UP_TO = 20


def density(name: str, clusters: Sequence[Cluster]) -> str:
    """Plot d_intra over d_inter: one dot per cluster, its area for the size, its colour for the share kept."""

    def draw(axes: Axes) -> None:
        sizes = np.array([cluster.size for cluster in clusters])
        order = np.argsort(-sizes, kind="stable")
        dots = axes.scatter(
            np.array([cluster.d_inter for cluster in clusters])[order],
            np.array([cluster.d_intra for cluster in clusters])[order],
            s=_areas(sizes)[order],
            c=np.array([cluster.quota for cluster in clusters])[order] / sizes[order],
            cmap=ListedColormap(RAMP),
            norm=Normalize(0, 1),
            edgecolors=PAPER,
            linewidths=0.6,
            zorder=2,
        )
        axes.set(xlabel="distance to the nearest other clusters, d_inter", ylabel="spread within the cluster, d_intra")
        bar = axes.figure.colorbar(dots, ax=axes, pad=0.02, aspect=28, format=PercentFormatter(1.0, decimals=0))
        bar.set_label("share of the cluster kept")
        bar.outline.set_visible(False)
        assert bar.solids is not None, "the colour bar of a scatter plot is filled"
        # otherwise viewers show thin lines between the colours
        bar.solids.set_edgecolor("face")

    return svg(name, draw)


def _areas(sizes: np.ndarray) -> np.ndarray:
    return sizes / sizes.mean() * _mean_area(len(sizes))


def _mean_area(num_clusters: int) -> float:
    return min(MEAN_DOT, ALL_DOTS / num_clusters)


def quota(name: str, clusters: Sequence[Cluster]) -> str:
    """Plot quota over size, with a line where quota = size; logarithmic if sizes differ a lot."""
    sizes, quotas = ([getattr(cluster, key) for cluster in clusters] for key in ("size", "quota"))
    is_whole = np.equal(sizes, quotas)

    def draw(axes: Axes) -> None:
        ends = (min(quotas), max(sizes))
        axes.plot(ends, ends, color=BEFORE, linestyle=(0, (4, 3)), linewidth=1.2, label="quota = size")
        for label, chosen, colour in (("all pairs kept", is_whole, AFTER), ("pruned", ~is_whole, THIRD)):
            axes.scatter(
                np.array(sizes)[chosen],
                np.array(quotas)[chosen],
                s=max(SMALLEST_DOT, _mean_area(len(sizes)) / 2),
                color=colour,
                edgecolors=PAPER,
                linewidths=0.6,
                zorder=2,
                label=label,
            )
        axes.set(xlabel="size: pairs in the cluster", ylabel="quota: pairs to keep")
        _count_scale(axes, sizes, quotas)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return svg(name, draw)


def _count_scale(axes: Axes, sizes: Sequence[int], quotas: Sequence[int]) -> None:
    if max(sizes) > LINEAR_UP_TO * min(sizes):
        axes.set(xscale="log", yscale="log", ylim=(min(quotas) / 1.3, max(quotas) * 1.6))
        count_axis(axes.xaxis)
        count_axis(axes.yaxis)
    else:
        axes.set(xlim=(0, None), ylim=(0, max(quotas) * 1.15))
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.yaxis.set_major_formatter(FuncFormatter(short))


def similarity(name: str, found: Duplicates) -> str:
    """Plot the histogram of cosines to the nearest earlier pair; pairs above 1 - eps are duplicates."""

    def draw(axes: Axes) -> None:
        edges = np.array(found.similarity.edges)
        is_copy = edges[:-1] > 1 - found.eps - 1e-6
        for label, chosen, colour in (("kept", ~is_copy, BEFORE), ("dropped as duplicates", is_copy, THIRD)):
            counts = np.array(found.similarity.counts)[chosen]
            axes.bar(
                edges[:-1][chosen],
                counts,
                np.diff(edges)[chosen],
                align="edge",
                color=colour,
                label=label,
                edgecolor=PAPER,
                linewidth=0.4,
                zorder=2,
            )
        axes.axvline(
            1 - found.eps, color=AFTER, linestyle=(0, (4, 3)), linewidth=1.2, label=f"1 − eps = {1 - found.eps:g}"
        )
        axes.set(xlabel="cosine to the nearest earlier pair of the cluster", ylabel="pairs")
        axes.yaxis.set_major_formatter(FuncFormatter(short))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return svg(name, draw)
