"""What a run is, typed: one frozen class per group of `conf/`, validated once at the boundary.

Past `parse` nothing sees a raw mapping. Every message names the key, what came and what is expected."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import UserError

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


# stages of every run, whose names the report relies on
RESERVED_STEPS = {"pool", "captioned", "catalog", "pretrain", "finetune", "evaluate"}


class ConfigError(UserError, ValueError):
    """A setting that cannot be: the message is one line, meant for the user."""


class Section(BaseModel):
    """A group of settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Limits(Section):
    """How much of a pool may be broken before a run stops. One shard may always be; 0 allows none at all."""

    max_broken_shards: Share = 0.01
    max_broken_pairs: Share = 0.1


class WebDatasetSource(Section):
    """Tar shards as img2dataset writes them (image + txt + json, and a Parquet file beside each tar)."""

    format: Literal["webdataset"] = "webdataset"
    uri: str | tuple[str, ...] | None = None
    limits: Limits = Limits()


class ParquetSource(Section):
    """Parquet shards with the image bytes in a column (img2dataset's `parquet` output)."""

    format: Literal["parquet"] = "parquet"
    uri: str | tuple[str, ...] | None = None
    image_column: str = "jpg"
    caption_column: str = "caption"
    key_column: str | None = "key"
    limits: Limits = Limits()


class TableSource(Section):
    """A caption table without images (Parquet, CSV, TSV, JSON lines): prune before downloading."""

    format: Literal["table"] = "table"
    uri: str | tuple[str, ...] | None = None
    caption_column: str = "caption"
    key_column: str | None = None
    part_rows: Positive = 1_000_000
    limits: Limits = Limits()


class DemoSource(Section):
    """The embedded pool, written once into the store as LAION-shaped shards."""

    format: Literal["demo"] = "demo"
    uri: None = None
    pairs_per_shard: Positive = 1000
    limits: Limits = Limits()


SourceConfig = Annotated[WebDatasetSource | ParquetSource | TableSource | DemoSource, Field(discriminator="format")]


class WfppStep(Section):
    """Word-frequency-based pruning (arXiv 2410.10879)."""

    method: Literal["wfpp"] = "wfpp"
    keep_fraction: Fraction = 0.8
    t: Annotated[float, Field(gt=0)] = 1e-7
    min_count: Positive = 5
    max_words: Positive = 30
    length_normalised: bool = True
    clip_negative: bool = False


class RandomStep(Section):
    """The control: a seeded uniform draw without replacement."""

    method: Literal["random"] = "random"
    keep_fraction: Fraction = 0.8
    seed: int = 0


class AllStep(Section):
    """No pruning: every pair that reaches the step stays."""

    method: Literal["all"] = "all"


StepConfig = Annotated[WfppStep | RandomStep | AllStep, Field(discriminator="method")]


class SelectionConfig(Section):
    """The steps in order, and a named settings node for each; the same method twice goes by alias."""

    steps: tuple[str, ...] = ("wfpp",)
    settings: dict[str, StepConfig] = {}

    @model_validator(mode="before")
    @classmethod
    def _fold_step_nodes(cls, raw: dict[str, Any]) -> dict[str, Any]:
        nodes = dict(raw.get("settings", {}))
        nodes |= {name: node for name, node in raw.items() if name not in ("steps", "settings")}
        settings = {name: {"method": name, **node} for name, node in nodes.items()}
        return {"steps": raw.get("steps", ("wfpp",)), "settings": settings}

    @model_validator(mode="after")
    def _steps_are_declared(self) -> SelectionConfig:
        for step in self.steps:
            if step not in self.settings:
                raise ValueError(f"selection.steps names {step!r}; declared steps: {', '.join(sorted(self.settings))}")
        taken = RESERVED_STEPS & self.settings.keys()
        if taken:
            raise ValueError(f"selection.{taken.pop()}: the name is a stage's own; give the step another alias")
        if len(set(self.steps)) < len(self.steps):
            raise ValueError("selection.steps names a step twice; give the second one an alias with its own node")
        return self


class ModelConfig(Section):
    """An open_clip model by name, or a configuration of one's own (timm towers allowed)."""

    name: str | None = "ViT-B-32"
    config: dict[str, Any] | None = None
    pretrained: str | None = None
    image_size: Positive | None = None
    context_length: Positive | None = None

    @model_validator(mode="after")
    def _one_of_name_and_config(self) -> ModelConfig:
        if (self.name is None) == (self.config is None):
            raise ValueError("model: give either model.name or model.config, and set the other to null")
        return self


class AugmentationConfig(Section):
    """Random resized crop as open_clip trains with; `scale` [1, 1] and `ratio` [1, 1] make it a centre crop."""

    scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: bool = False


class PhaseConfig(Section):
    """One training phase: how long, how fast."""

    epochs: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _one_warmup(self) -> PhaseConfig:
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("give either warmup_steps or warmup_epochs, not both")
        return self


class FinetuneConfig(PhaseConfig):
    """The phase on every valid pair of the source, from the pre-trained weights with a new optimiser."""

    enabled: bool = True
    epochs: Positive = 1
    lr: Annotated[float, Field(gt=0)] = 1e-5
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.1


class TrainingConfig(PhaseConfig):
    """Pre-training, and what both phases share: batch, optimiser, precision, stream and checkpoints."""

    global_batch_size: Positive = 32_768
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    beta1: Share = 0.9
    beta2: Share = 0.98
    eps: Annotated[float, Field(gt=0)] = 1e-6
    grad_clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    local_loss: bool = False
    seed: int = 0
    augmentation: AugmentationConfig = AugmentationConfig()
    max_image_pixels: Positive = 89_478_485
    max_bad_pairs: Share = 0.05
    lanes: Positive = 64
    window: Positive = 1024
    checkpoint_every_steps: Positive = 1000
    log_every_steps: Positive = 10
    num_workers: Positive | None = None
    cpus_per_worker: Positive = 1
    max_failures: Annotated[int, Field(ge=0)] = 3

    @model_validator(mode="after")
    def _lanes_divide_the_batch(self) -> TrainingConfig:
        if self.global_batch_size % self.lanes:
            raise ValueError(
                f"training.global_batch_size={self.global_batch_size} must be a multiple of "
                f"training.lanes={self.lanes}: every global batch takes as many pairs from each lane"
            )
        if self.num_workers is not None and self.lanes % self.num_workers:
            raise ValueError(
                f"training.lanes={self.lanes} must be a multiple of training.num_workers="
                f"{self.num_workers}: every worker owns as many lanes"
            )
        return self


class ZeroShotConfig(Section):
    """A classification set: a tar of image + `cls`, its class names and prompt templates in text files beside it."""

    uri: str | None = None
    templates: tuple[str, ...] | None = None


class RetrievalConfig(Section):
    """Held-out pairs: a tar of image + caption."""

    uri: str | None = None


class EvaluationConfig(Section):
    """What the trained models are measured on."""

    zero_shot: ZeroShotConfig = ZeroShotConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    batch_size: Positive = 256


class TrackingConfig(Section):
    """Where the training curve goes besides the JSON-lines file."""

    tensorboard: bool = True
    wandb_project: str | None = None
    mlflow_uri: str | None = None


class ClusterConfig(Section):
    """Which Ray cluster: an address (default: RAY_ADDRESS, else one on this machine)."""

    address: str | None = None
    num_cpus: Positive | None = None
    scoring_actors: Positive | None = None


class Config(Section):
    """A whole run."""

    name: str = "run"
    source: SourceConfig
    selection: SelectionConfig
    model: ModelConfig
    training: TrainingConfig
    finetune: FinetuneConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig
    cluster: ClusterConfig
    store: str = "runs/store"
    out: str | None = None
    run: str | None = None
    to: str | None = None
    checkpoint: str | None = None


def parse(raw: dict[str, Any]) -> Config:
    """The typed configuration of a resolved Hydra config.

    Errors: `ConfigError`, one line for all that is wrong, each with its key, what came and what was expected."""
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
    key, message = ".".join(where), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message if message.startswith(where[0]) else f"{key}: {message}"
    if problem["type"] == "missing":
        return f"{key}: missing, expected a value"
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        discriminator = context["discriminator"].strip("'")
        return f"{key}.{discriminator}: got {context['tag']!r}, expected one of {context['expected_tags']}"
    return f"{key}: got {problem['input']!r}, expected {message.removeprefix('Input should be ').lower()}"
