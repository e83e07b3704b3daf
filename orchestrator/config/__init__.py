"""The typed configuration: one frozen class for each group of `conf/`, validated once.

Code behind `parse` sees typed settings only. Each error message names the key, the value and what was expected.

The package imports `storage` and `errors` only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from orchestrator.config.embedding import (
    ClipRetrievalEmbedding,
    ColumnEmbedding,
    EfficientNetLite0Encoder,
    EmbeddingConfig,
    EncoderConfig,
    MatchBy,
    OpenClipEncoder,
    PrecomputedConfig,
    TimmEncoder,
)
from orchestrator.config.evaluation import (
    EvaluationConfig,
    RetrievalConfig,
    TaskConfig,
    ZeroShotConfig,
)
from orchestrator.config.secrets import check_no_secrets, without_password
from orchestrator.config.section import ConfigError, GpuName, Positive, Price, Section, not_empty
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
from orchestrator.config.tracking import TrackingConfig
from orchestrator.config.training import (
    AugmentationConfig,
    FinetuneConfig,
    ModelConfig,
    PhaseConfig,
    TrainingConfig,
)
from orchestrator.errors import UserError
from orchestrator.storage.hub import check_writable

__all__ = [
    "AllStep",
    "AshaConfig",
    "AugmentationConfig",
    "BasicStep",
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
    "PrecomputedConfig",
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


class ClusterConfig(Section):
    """The Ray cluster that a command uses, and how it may grow."""

    address: str | None = None
    """Address of the cluster. Null: RAY_ADDRESS, otherwise the cluster that `ray start` made this machine a node of,
    otherwise a new one on this machine. `local`: always a new one."""
    num_cpus: Positive | None = None
    """Logical CPUs of a new cluster on this machine. Setting it starts one. Null: twice the cores, at least 4. Unit:
    CPUs."""
    scales_to_cpus: Positive | None = None
    """With an autoscaler: the CPUs that the cluster can grow to. Stages are planned for them and wait for them. Null:
    the CPUs that are there when a stage starts. Unit: CPUs."""
    scales_to_gpus: Positive | None = None
    """With an autoscaler: the GPUs that the cluster can grow to. Null: the GPUs that are there when a stage starts.
    Unit: GPUs."""
    scoring_actors: Positive | None = None
    """Actors that score captions. Null: one for each CPU. Unit: actors."""


class PlanConfig(Section):
    """The estimates of `plan`."""

    probe: bool = True
    """Measure rates on a few parts of the pool to estimate hours, memory, storage and cost. False: only count pairs
    and samples."""
    probe_parts: Positive = 4
    """Parts that the probe measures, spread evenly over the pool. Unit: parts."""
    gpu: GpuName | None = None
    """Show the memory of a training step on a GPU of this type, without having one. Null: not shown."""
    core_hour_price: Price | None = None
    """Price of one hour of one core on a CPU node. Null: no cost is shown. Unit: dollars."""
    gpu_hour_price: Price | None = None
    """Price of one hour of one GPU with the cores of its node. Null: no cost is shown. Unit: dollars."""


class Config(Section):
    """The whole configuration of a command."""

    name: str = "run"
    """The name of the run."""
    source: SourceConfig
    """The pool."""
    embedding: dict[str, EmbeddingConfig]
    """The embeddings by name. Only those that a selection step names are computed or read."""
    selection: SelectionConfig
    """The selection steps."""
    model: ModelConfig
    """The model to train."""
    training: TrainingConfig
    """Pre-training, and what both phases share."""
    finetune: FinetuneConfig
    """The fine-tune phase."""
    evaluation: EvaluationConfig
    """The evaluation sets."""
    tracking: TrackingConfig
    """The trackers."""
    cluster: ClusterConfig
    """The Ray cluster."""
    sweep: SweepConfig = SweepConfig()
    """The sweep."""
    plan: PlanConfig = PlanConfig()
    """The estimates of `plan`."""
    store: str = "runs/store"
    """The folder or URI of the artifacts that runs share."""
    out: str | None = None
    """The run's own folder or URI. Null: `runs/NAME`."""
    run: str | None = None
    """For `export` and `report`: the folder of a finished run."""
    to: str | None = None
    """For `export`: the file (`.parquet`, `.npy`) or folder to write."""
    checkpoint: str | None = None
    """For `evaluate`: a model folder, an open_clip model name (with `model.pretrained`) or
    `hf-hub:ORGANISATION/NAME`."""
    resume: bool = False
    """For `sweep`: continue the interrupted sweep in `out`."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe messages that `OUT/run.log` gets."""

    @field_validator("finetune", mode="before")
    @classmethod
    def _null_is_off(cls, value: Any) -> Any:
        return {"enabled": False} if value is None else value

    _own_not_empty = field_validator("store", "run", "to", "checkpoint")(not_empty)

    @field_validator("store", "out", "to")
    @classmethod
    def _writable(cls, place: str | None) -> str | None:
        try:
            check_writable(place or "")
        except UserError as error:
            raise ValueError(str(error)) from None
        return place

    @model_validator(mode="after")
    def _check_embeddings(self) -> Config:
        for step in self.selection.steps:
            name = self.selection.embedding_of(step)
            if name is not None and name not in self.embedding:
                declared = ", ".join(sorted(self.embedding))
                raise ValueError(f"selection.{step}.embedding names {name!r}; declared embeddings: {declared}")
        return self


def parse(raw: dict[str, Any]) -> Config:
    """Return the typed configuration of a resolved Hydra config.

    Errors: `ConfigError`, one line that lists every invalid setting with its value and what was expected."""
    check_no_secrets(raw)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_line(problem) for problem in error.errors())) from None


def _line(problem: Any) -> str:
    where = [str(step) for step in problem["loc"]]
    # pydantic's location also holds the union's member ("table", "wfpp") and the folded node: not keys of the user
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
    return f"{key}: got {_shown(problem['input'])}, expected {_expected(problem['type'], message)}"


def _shown(value: Any) -> str:
    # as users write it
    return "null" if value is None else repr(value)


def _expected(kind: str, message: str) -> str:
    if kind == "tuple_type":
        return "a list, such as [a, b]"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "a group of settings, such as {key: value}"
    return message.removeprefix("Input should be ").lower()
