"""A stage as `plan` and `run` both use it: what it makes, how to show it, how to compute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.engine.artifact import Artifact
from orchestrator.engine.console import Display
from orchestrator.engine.parts import MAX_PART_BLOCKS
from orchestrator.engine.role import TRAINING_ROLES, Role


def nothing(num_pairs: int) -> int:
    """For stages of which no process holds more vectors than those of one part."""
    return 0


class Size(NamedTuple):
    """What the number of a stage's tasks depends on: the `pairs` that reach it, the pairs and parts of the pool."""

    pairs: int
    pool: int
    parts: int


def in_blocks(size: Size) -> int:
    """For stages that work on single parts, in tasks."""
    return min(size.parts, MAX_PART_BLOCKS)


def by_part(size: Size) -> int:
    """For stages that work on single parts, in actors."""
    return size.parts


@dataclass(frozen=True)
class _ByGroups:
    limit: int
    pairs_per_group: int

    def __call__(self, size: Size) -> int:
        return max(1, min(self.limit, size.parts, -(-size.pool // self.pairs_per_group)))


def by_groups(limit: int, pairs_per_group: int = 1) -> Callable[[Size], int]:
    """For stages that work on groups of parts: at most `limit` groups, of at least `pairs_per_group` pairs each."""
    return _ByGroups(limit, pairs_per_group)


@dataclass(frozen=True, kw_only=True)
class PairFlow:
    """How many pairs a stage sees and leaves, as far as `plan` can know before anything is computed.

    `keep_pairs` (or, if it is None, `keep_fraction`) is the budget of a selection step. `is_filter`: the step has no
    budget, and only its result shows how many pairs it leaves. `epochs` and `samples`: how often a training phase sees
    each pair, or how many samples it sees in all. `on_whole_pool`: the stage sees every valid pair, not only the
    selected ones. `follows`: the stage sees the pairs that the selection step of that name leaves."""

    keep_fraction: float | None = None
    keep_pairs: int | None = None
    is_filter: bool = False
    epochs: int = 0
    samples: int | None = None
    on_whole_pool: bool = False
    follows: str | None = None


@dataclass(frozen=True, kw_only=True)
class CostScaling:
    """How the costs of a stage grow with the number of pairs that reach it; `plan` scales a probe's costs by it.

    `work` and `stores` are proportional to the stage's hours and to the bytes of its artifact; `holds` is the number
    of pairs of which one process holds the vectors. `num_tasks` is the largest number of tasks that run at once;
    `one_task`: the stage does not spread over the cluster. `by_cluster_size`: a pair costs more in a larger cluster."""

    work: Callable[[int], float] = float
    stores: Callable[[int], float] = float
    holds: Callable[[int], int] = nothing
    num_tasks: Callable[[Size], int] = in_blocks
    one_task: bool = False
    by_cluster_size: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run: `build` computes the missing parts of `artifact` and publishes it.

    `role` and `step` identify the stage: `step` is the name or alias of the selection step that it belongs to, or the
    name of the embedding that it makes, or None. `name` is the title and `does` one phrase; both are only shown."""

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
