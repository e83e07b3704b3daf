"""The random numbers of a step: each step has its own stream, named after the step or its alias.

With one stream for all, what one random step keeps, the next would tend to keep too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.data.step import Step
from orchestrator.pruning.order import step_seed


def seed_of(step: Step) -> int:
    """The seed of the step's own stream, from the `seed` of its settings."""
    return step_seed(step.settings.seed, step.name)  # type: ignore[union-attr]


def stream_input(step: Step, *, default: str | None = None) -> Mapping[str, Any]:
    """The input of a fingerprint that names the stream: empty for the step `default`, where earlier versions drew the
    same numbers, and for an order that is not random."""
    is_random = getattr(step.settings, "order", "random") == "random"
    return {"stream": step.name} if is_random and step.name != default else {}
