"""What `sweep.json` holds: these classes are the schema, their attributes the keys, in this order.

All fractions and metrics lie in [0, 1], all times are wall seconds. A key is never renamed or given another meaning
without a new `schema_version`; new keys may come."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.report.entry import Entry

SCHEMA_VERSION = 1
AVERAGE = "tasks/average, "
JSON_FILE, TABLE_FILE, PAGE_FILE = "sweep.json", "sweep.parquet", "sweep.html"


class ModelResult(Entry):
    """A model of a trial.

    Keys: `samples_seen` and `training_seconds`, of all phases up to this model; `metrics` by "SET/METRIC", such as
    "zero_shot/top1" and "retrieval/text_to_image_recall_at_1", the main ones of benchmark tasks as "tasks/KEY" and
    their averages as "tasks/average, NAME". Of a trial that was stopped: the metric that trials are compared by when it
    was last measured, the samples by then, and the seconds since the trial began."""

    samples_seen: int
    training_seconds: float
    metrics: dict[str, float]


class TrialResult(Entry):
    """One trial: a whole run with its own settings.

    Keys: `name`; `settings` by dimension (empty for a control); `control`, what it is compared with: "full" trains on
    every pair, "random" on as many random ones as other trials keep; `seed`; `state`; `reason`, why it is not finished;
    `out`, the run's folder; `pairs` it pre-trains on, and which fraction of the pool's that is; `pruning_seconds`, what
    the stages that choose its pairs took when they were computed; `models` by phase, "pretrain" and "finetune"."""

    name: str
    settings: dict[str, Any]
    control: Literal["full", "random"] | None
    seed: int
    state: Literal["finished", "stopped", "failed"]
    reason: str | None = None
    out: str
    pairs: int | None = None
    kept_fraction: float | None = None
    pruning_seconds: float | None = None
    models: dict[str, ModelResult] = Field(default={})


class SharedStage(Entry):
    """The stages of a kind that come before training.

    Keys: `kind`, such as "embedding"; `needed`, by how many trials in all; `distinct` ones among those; `computed` by
    this sweep, the others were in the store; `seconds` they took."""

    kind: str
    needed: int
    distinct: int
    computed: int
    seconds: float


class SweepReport(Entry):
    """The whole of `sweep.json`.

    Keys: `schema_version`; the sweep's `name`, when it first `started` (ISO 8601), how often it was `resumed`, and the
    `wall_seconds` of it all; `metric` that trials are compared by; `dimensions`, the values of each that trials have,
    in order; `seeds`; `equal_samples` or `equal_epochs`, the budget of pre-training (null: as configured); `cores` of
    the cluster, that pruning runs on; `devices`, GPUs or cores that train one trial, and `device`, which of the two;
    `trials`; `sharing`; `versions` of the libraries; `config`, whole."""

    schema_version: int = SCHEMA_VERSION
    name: str
    started: str
    resumed: int = 0
    wall_seconds: float
    metric: str
    dimensions: dict[str, list[Any]]
    seeds: list[int]
    equal_samples: int | None
    equal_epochs: int | None
    cores: int
    devices: int
    device: Literal["GPU", "core"]
    trials: list[TrialResult]
    sharing: list[SharedStage]
    versions: dict[str, str]
    config: dict[str, Any]
