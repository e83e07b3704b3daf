"""A stage as the plan and the run both see it: what it makes, how to tell the user, how to compute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.artifacts import Artifact
from orchestrator.progress import Display


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`does` says it in words; `build` computes what is missing of the artifact and publishes it.

    For the plan's estimates: `keep_fraction` is what a step leaves of the pairs that reach it, `epochs` how often a
    training phase sees them, `on_whole_pool` that it sees every valid pair and not the selected ones."""

    name: str
    does: str
    artifact: Artifact
    build: Callable[[Display], object]
    keep_fraction: float | None = None
    epochs: int = 0
    on_whole_pool: bool = False
