"""Check what only the last stages of a run read, the model and the evaluation sets, before any stage is built."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.config import Config, ModelConfig
from orchestrator.engine.console import Display
from orchestrator.engine.role import TRAINING_ROLES, Role
from orchestrator.engine.stage import Stage
from orchestrator.errors import UserError
from orchestrator.evaluation.check import check_configured


def check_inputs(config: Config, left: Iterable[Stage], display: Display) -> None:
    """Check the inputs of the stages that a run has to build (`left`). Errors: `UserError`."""
    roles = {stage.role for stage in left}
    if roles & set(TRAINING_ROLES):
        _check_model(config.model)
    if Role.EVALUATE in roles:
        check_configured(config, display)


def _check_model(config: ModelConfig) -> None:
    # imports torch and open_clip, which a plan does not need
    from orchestrator.clip import model

    try:
        model.check(**dict(config))
    except ValueError as error:
        raise UserError(f"model: {error}") from error
