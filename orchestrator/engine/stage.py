"""A stage of a run, for both `plan` and `run`: its artifact, its title, its build function and how its cost scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import MAX_PART_BLOCKS
from orchestrator.engine.role import TRAINING_ROLES, Role


def nothing(num_pairs: int) -> int:
    """For stages whose processes hold no vectors, or the vectors of one part only. (`CostScaling.holds`)"""
    return 0


class Size(NamedTuple):
    """What decides how a stage is split: `pairs` that reach it, pairs in the `pool`, `parts` of the pool."""

    pairs: int
    pool: int
    parts: int


def in_blocks(size: Size) -> int:
    """For stages whose tasks work on blocks of parts. (`CostScaling.num_tasks`)"""
    return min(size.parts, MAX_PART_BLOCKS)


def by_part(size: Size) -> int:
    """For stages whose actors work on single parts. (`CostScaling.num_tasks`)"""
    return size.parts


@dataclass(frozen=True)
class _ByGroups:
    limit: int
    pairs_per_group: int

    def __call__(self, size: Size) -> int:
        return max(1, min(self.limit, size.parts, -(-size.pool // self.pairs_per_group)))


def by_groups(limit: int, pairs_per_group: int = 1) -> Callable[[Size], int]:
    """For stages that work on at most `limit` groups of parts, of at least `pairs_per_group` pairs each."""
    return _ByGroups(limit, pairs_per_group)


@dataclass(frozen=True, kw_only=True)
class PairFlow:
    """How many pairs a stage reads and keeps, as far as `plan` can know before anything is computed.

    `keep_pairs` (or, if it is None, `keep_fraction`) is the budget of a selection step. `is_filter`: the step has no
    budget, and only its result shows how many pairs it keeps. `epochs` and `samples`: how often a training phase reads
    each pair, or how many samples it reads in all. `on_whole_pool`: the stage reads every valid pair, not only the
    selected ones. `follows`: the stage reads the pairs that the selection step with this name keeps."""

    keep_fraction: float | None = None
    keep_pairs: int | None = None
    is_filter: bool = False
    epochs: int = 0
    samples: int | None = None
    on_whole_pool: bool = False
    follows: str | None = None


@dataclass(frozen=True, kw_only=True)
class CostScaling:
    """How the costs of a stage grow with the number of pairs that reach it; `plan` scales the costs of a probe with it.

    `work` and `stores` map pairs to a quantity proportional to the hours of the stage and to the bytes of its artifact.
    `holds` maps pairs to the number of vectors in the memory of one process. `num_tasks` is the largest number of tasks
    that run at once; `one_task`: the stage runs as a single task. `by_cluster_size`: the cost of a pair grows with the
    size of its cluster (of vectors)."""

    work: Callable[[int], float] = float
    stores: Callable[[int], float] = float
    holds: Callable[[int], int] = nothing
    num_tasks: Callable[[Size], int] = in_blocks
    one_task: bool = False
    by_cluster_size: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run. `build` computes the missing parts of `artifact` and publishes it.

    `role` and `step` identify the stage: `step` is the name or alias of its selection step, or the name of the
    embedding that it computes, or None. `name` is a title and `does` a one-phrase description; both are only shown."""

    name: str
    does: str
    artifact: Artifact
    build: Callable[[Display], object]
    role: Role
    step: str | None = None
    flow: PairFlow = PairFlow()
    scaling: CostScaling = CostScaling()

    @property
    def trains(self) -> bool:
        """Whether the stage is a training phase."""
        return self.role in TRAINING_ROLES
