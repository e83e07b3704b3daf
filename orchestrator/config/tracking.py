"""The trackers of training curves."""

from __future__ import annotations

import os
import re
from typing import Literal

from pydantic import field_serializer, field_validator

from orchestrator.config.secrets import without_password
from orchestrator.config.section import Section


class TrackingConfig(Section):
    """The trackers that get the training curve, besides the JSON-lines file that is always written."""

    tensorboard: bool = True
    """Write TensorBoard files beside the curve."""
    wandb_project: str | None = None
    """The Weights & Biases project. Null: off. Needs the extra `wandb`."""
    wandb_mode: Literal["online", "offline"] | None = None
    """The mode of Weights & Biases. Null: the environment variable WANDB_MODE decides."""
    mlflow_uri: str | None = None
    """The MLflow tracking URI, or a folder. Null: off. Needs the extra `mlflow`. A user and password in it are used but
    never written down."""
    mlflow_experiment: str = "orchestrator"
    """The MLflow experiment."""

    @field_validator("mlflow_uri")
    @classmethod
    def _absolute(cls, uri: str | None) -> str | None:
        # workers run in another folder; a name without a scheme is a path, except Databricks' own
        if uri and ":" not in uri and uri != "databricks":
            return os.path.abspath(os.path.expanduser(uri))
        return uri and re.sub(r"^sqlite:///(?!/)", f"sqlite:///{os.getcwd()}/", uri)

    @field_serializer("mlflow_uri", when_used="json")
    def _without_password(self, uri: str | None) -> str | None:
        return uri and without_password(uri)
