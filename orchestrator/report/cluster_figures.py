"""The plots of what the steps did that go by an embedding: clusters as dots, similarities as bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import FuncFormatter, PercentFormatter

from orchestrator.report.figures import AFTER, BEFORE, PAPER, RAMP, THIRD, short, svg
from orchestrator.report.schema_clusters import Cluster, Duplicates

# of a plot some 27,000 square points large
MEAN_DOT, ALL_DOTS = 60.0, 4000.0


def density(name: str, clusters: Sequence[Cluster]) -> str:
    """d_inter against d_intra, a dot a cluster, its area the size, its colour the share that is kept."""

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
        assert bar.solids is not None, "a bar of dots is filled"
        # else the paper shines through between the steps
        bar.solids.set_edgecolor("face")

    return svg(name, draw)


def _areas(sizes: np.ndarray) -> np.ndarray:
    return sizes / sizes.mean() * min(MEAN_DOT, ALL_DOTS / len(sizes))


def quota(name: str, clusters: Sequence[Cluster]) -> str:
    """Quota against size, and the line on which a cluster stays whole."""

    def draw(axes: Axes) -> None:
        whole = [cluster for cluster in clusters if cluster.quota == cluster.size]
        thinned = [cluster for cluster in clusters if cluster.quota != cluster.size]
        largest = max(cluster.size for cluster in clusters)
        axes.plot([0, largest], [0, largest], color=BEFORE, linestyle=(0, (4, 3)), linewidth=1.2, label="quota = size")
        for label, some, colour in (("kept whole", whole, AFTER), ("thinned", thinned, THIRD)):
            axes.scatter(
                [cluster.size for cluster in some],
                [cluster.quota or 0 for cluster in some],
                s=min(MEAN_DOT, ALL_DOTS / len(clusters)) / 2,
                color=colour,
                edgecolors=PAPER,
                linewidths=0.6,
                zorder=2,
                label=label,
            )
        axes.set(xlabel="pairs in the cluster, M", ylabel="pairs it keeps, quota", xlim=(0, None), ylim=(0, None))
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.yaxis.set_major_formatter(FuncFormatter(short))
        axes.legend(loc="upper left")

    return svg(name, draw)


def similarity(name: str, found: Duplicates) -> str:
    """How many pairs have their nearest earlier pair at which cosine; what is above 1 - eps is a duplicate."""

    def draw(axes: Axes) -> None:
        edges = np.array(found.similarity.edges)
        is_copy = edges[:-1] > 1 - found.eps - 1e-6
        for label, chosen, colour in (("stay", ~is_copy, BEFORE), ("dropped as duplicates", is_copy, THIRD)):
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
        axes.legend(loc="upper left")

    return svg(name, draw)
