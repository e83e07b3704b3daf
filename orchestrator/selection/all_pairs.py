"""No pruning: the keep list that reaches the step is the one that leaves it."""

from __future__ import annotations

from orchestrator.stage import Stage
from orchestrator.step import Step


def stages(step: Step) -> list[Stage]:
    """No stage of its own."""
    return []
