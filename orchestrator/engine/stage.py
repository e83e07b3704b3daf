"""A stage as the plan and the run both see it: what it makes, how to tell the user, how to compute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import MAX_PART_BLOCKS


def nothing(num_pairs: int) -> int:
    """For stages whose processes hold no vectors, or those of one part."""
    return 0


class Size(NamedTuple):
    """What a stage is cut up by: the `pairs` that reach it, those of the `pool`, and the pool's `parts`."""

    pairs: int
    pool: int
    parts: int


def in_blocks(size: Size) -> int:
    """For stages that work part by part, in tasks."""
    return min(size.parts, MAX_PART_BLOCKS)


def by_part(size: Size) -> int:
    """For stages that work part by part, in actors."""
    return size.parts


def by_groups(limit: int, pairs_per_group: int = 1) -> Callable[[Size], int]:
    """For stages that work by runs of parts: at most so many, and of at least so many pairs."""
    return lambda size: max(1, min(limit, size.parts, -(-size.pool // pairs_per_group)))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`does` says it in words; `build` computes what is missing of the artifact and publishes it.

    For the plan's estimates: `keep_fraction`, or first `keep_pairs`, is what a step leaves of the pairs that reach it,
    `is_filter` that what it leaves is an outcome, `epochs` how often a training phase sees them (or `samples`, how many
    of them in all), `on_whole_pool` that it sees every valid pair and not the selected ones, `follows` that it sees
    what the step of that name left.

    For its costs, of the number of pairs that reach it: `work` and `stores` are what its hours and its artifact grow
    with, `holds` how many pairs' vectors one of its processes holds. `num_tasks`: in how many at once it works at most;
    `one_task`: it is not spread over the cluster; `by_cluster_size`: a pair costs the more the larger its cluster."""

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
    num_tasks: Callable[[Size], int] = in_blocks
    one_task: bool = False
    by_cluster_size: bool = False
