"""The configuration, typed: one frozen class per group of `conf/`, validated once, in `parse`.

Code past `parse` never sees a raw mapping. Every message names the key, the value and what is expected. Imports
`storage` and `errors`."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from pydantic import ValidationError, field_serializer, field_validator, model_validator

from orchestrator.config.embedding import (
    BroughtConfig,
    ClipRetrievalEmbedding,
    ColumnEmbedding,
    EfficientNetLite0Encoder,
    EmbeddingConfig,
    EncoderConfig,
    MatchBy,
    OpenClipEncoder,
    TimmEncoder,
)
from orchestrator.config.evaluation import (
    EvaluationConfig,
    RetrievalConfig,
    TaskConfig,
    ZeroShotConfig,
)
from orchestrator.config.secrets import check_no_secrets, without_password
from orchestrator.config.section import ConfigError, Positive, Price, Section
from orchestrator.config.selection import (
    AllStep,
    BasicStep,
    Budgeted,
    ClipScoreStep,
    Clustering,
    DbpStep,
    KeepListStep,
    MetaClipStep,
    Order,
    RandomStep,
    SelectionConfig,
    SemDeDupStep,
    SspStep,
    StepConfig,
    WfppStep,
)
from orchestrator.config.source import (
    DemoSource,
    Limits,
    ParquetSource,
    SourceConfig,
    TableSource,
    WebDatasetSource,
)
from orchestrator.config.sweep import AshaConfig, Dimension, SweepConfig
from orchestrator.config.training import (
    AugmentationConfig,
    FinetuneConfig,
    ModelConfig,
    PhaseConfig,
    TrainingConfig,
)

__all__ = [
    "AllStep",
    "AshaConfig",
    "AugmentationConfig",
    "BasicStep",
    "BroughtConfig",
    "Budgeted",
    "ClipRetrievalEmbedding",
    "ClipScoreStep",
    "ClusterConfig",
    "Clustering",
    "ColumnEmbedding",
    "Config",
    "ConfigError",
    "DbpStep",
    "DemoSource",
    "Dimension",
    "EfficientNetLite0Encoder",
    "EmbeddingConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "KeepListStep",
    "Limits",
    "MatchBy",
    "MetaClipStep",
    "ModelConfig",
    "OpenClipEncoder",
    "Order",
    "ParquetSource",
    "PhaseConfig",
    "PlanConfig",
    "RandomStep",
    "RetrievalConfig",
    "Section",
    "SelectionConfig",
    "SemDeDupStep",
    "SourceConfig",
    "SspStep",
    "StepConfig",
    "SweepConfig",
    "TableSource",
    "TaskConfig",
    "TimmEncoder",
    "TrackingConfig",
    "TrainingConfig",
    "WebDatasetSource",
    "WfppStep",
    "ZeroShotConfig",
    "parse",
    "without_password",
]


class TrackingConfig(Section):
    """Where the training curve goes besides the JSON-lines file.

    `wandb_mode` null leaves it to WANDB_MODE. A user and password in `mlflow_uri` are used, and written nowhere."""

    tensorboard: bool = True
    wandb_project: str | None = None
    wandb_mode: Literal["online", "offline"] | None = None
    mlflow_uri: str | None = None
    mlflow_experiment: str = "orchestrator"

    @field_validator("mlflow_uri")
    @classmethod
    def _absolute(cls, uri: str | None) -> str | None:
        # workers have another working folder; a name without a scheme is a folder, but for this one
        if uri and ":" not in uri and uri != "databricks":
            return os.path.abspath(os.path.expanduser(uri))
        return uri and re.sub(r"^sqlite:///(?!/)", f"sqlite:///{os.getcwd()}/", uri)

    @field_serializer("mlflow_uri", when_used="json")
    def _without_password(self, uri: str | None) -> str | None:
        return uri and without_password(uri)


class ClusterConfig(Section):
    """Which Ray cluster: an address (default: RAY_ADDRESS, else the one that `ray start` made this machine a node of,
    else one that is started here; `num_cpus` asks for that, as the address `local` does). With an autoscaler, what it
    brings the cluster to, for which stages are planned: `scales_to_cpus`, `scales_to_gpus`."""

    address: str | None = None
    num_cpus: Positive | None = None
    scales_to_cpus: Positive | None = None
    scales_to_gpus: Positive | None = None
    scoring_actors: Positive | None = None


class PlanConfig(Section):
    """The estimates of `plan`: whether a probe measures rates, on how many of the pool's parts, and what an hour of a
    core and of a GPU costs."""

    probe: bool = True
    probe_parts: Positive = 4
    core_hour_price: Price | None = None
    gpu_hour_price: Price | None = None


class Config(Section):
    """A whole run."""

    name: str = "run"
    source: SourceConfig
    embedding: dict[str, EmbeddingConfig]
    selection: SelectionConfig
    model: ModelConfig
    training: TrainingConfig
    finetune: FinetuneConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig
    cluster: ClusterConfig
    sweep: SweepConfig = SweepConfig()
    plan: PlanConfig = PlanConfig()
    store: str = "runs/store"
    out: str | None = None
    run: str | None = None
    to: str | None = None
    checkpoint: str | None = None
    resume: bool = False

    @model_validator(mode="after")
    def _embeddings_are_declared(self) -> Config:
        for step in self.selection.steps:
            name = self.selection.embedding_of(step)
            if name is not None and name not in self.embedding:
                declared = ", ".join(sorted(self.embedding))
                raise ValueError(f"selection.{step}.embedding names {name!r}; declared embeddings: {declared}")
        return self


def parse(raw: dict[str, Any]) -> Config:
    """The typed configuration of a resolved Hydra config.

    Errors: `ConfigError`, one line for all that is wrong, each with its key, what came and what was expected."""
    check_no_secrets(raw)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_line(problem) for problem in error.errors())) from None


def _line(problem: Any) -> str:
    where = [str(step) for step in problem["loc"]]
    # pydantic's location also names the union's member ("table", "wfpp") and the folded node, no keys of the user's
    if where[:1] == ["source"]:
        where = where[:1] + where[2:]
    if where[:2] == ["selection", "settings"]:
        where = [where[0], where[2], *where[4:]]
    if where[:1] == ["embedding"]:
        where = [*where[:2], *where[3:]]
    key, message = ".".join(where), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message if not where or message.startswith(where[0]) else f"{key}: {message}"
    if problem["type"] == "missing":
        return f"{key}: missing, expected a value"
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        discriminator = context["discriminator"].strip("'")
        return f"{key}.{discriminator}: got {context['tag']!r}, expected one of {context['expected_tags']}"
    return f"{key}: got {problem['input']!r}, expected {message.removeprefix('Input should be ').lower()}"
