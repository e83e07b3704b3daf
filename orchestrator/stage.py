"""A stage as the plan and the run both see it: what it makes, how to tell the user, how to compute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.artifacts import Artifact
from orchestrator.progress import Display


def nothing(num_pairs: int) -> int:
    """For stages whose processes hold no vectors, or those of one part."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`does` says it in words; `build` computes what is missing of the artifact and publishes it.

    For the plan's estimates: `keep_fraction`, or first `keep_pairs`, is what a step leaves of the pairs that reach it,
    `is_filter` that what it leaves is an outcome, `epochs` how often a training phase sees them (or `samples`, how many
    of them in all), `on_whole_pool` that it sees every valid pair and not the selected ones, `follows` that it sees
    what the step of that name left.

    For its costs, of the number of pairs that reach it: `work` and `stores` are what its hours and its artifact grow
    with, `holds` how many pairs' vectors one of its processes holds. `one_task`: it is not spread over the cluster;
    `by_cluster_size`: a pair costs the more the larger its cluster."""

    name: str
    does: str
    artifact: Artifact
    build: Callable[[Display], object]
    keep_fraction: float | None = None
    keep_pairs: int | None = None
    is_filter: bool = False
    epochs: int = 0
    samples: int | None = None
    on_whole_pool: bool = False
    follows: str | None = None
    work: Callable[[int], float] = float
    stores: Callable[[int], float] = float
    holds: Callable[[int], int] = nothing
    one_task: bool = False
    by_cluster_size: bool = False
