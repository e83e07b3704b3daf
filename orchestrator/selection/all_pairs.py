"""No pruning: the keep list that reaches the step is the one that leaves it."""

from __future__ import annotations

from orchestrator.data.step import Step
from orchestrator.engine.stage import Stage


def stages(step: Step) -> list[Stage]:
    """No stage of its own."""
    return []
