"""The schema of `sweep.json`: each class is a mapping, its attributes are the keys in order.

All fractions and metrics lie in [0, 1], all times are wall seconds. New keys may be added; a key is renamed or changes
its meaning only with a new `schema_version`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.report.schema_pairs import Entry

SCHEMA_VERSION = 1
AVERAGE = "tasks/average, "
JSON_FILE, TABLE_FILE, PAGE_FILE = "sweep.json", "sweep.parquet", "sweep.html"


class ModelResult(Entry):
    """A model of a trial.

    Keys: `samples_seen` and `training_seconds`, of all phases up to this model; `metrics` by "SET/METRIC", such as
    "zero_shot/top1" and "retrieval/text_to_image_recall_at_1", the main metric of a benchmark task as "tasks/KEY" and
    averages over tasks as "tasks/average, NAME". For a stopped trial: the last value of the sweep's metric, the samples
    seen until then, and the seconds since the trial started."""

    samples_seen: int
    training_seconds: float
    metrics: dict[str, float]


class TrialResult(Entry):
    """One trial: a whole run with its own settings.

    Keys: `name`; `settings` by dimension (empty for a control); `control`, the kind of control, null for other trials:
    "full" trains on every pair, "random" on as many random pairs as other trials keep; `seed`; `state`; `reason`, why
    it did not finish; `out`, the run's folder; `pairs`, the number that it pre-trains on; `kept_fraction`, their share
    of the pool; `pruning_seconds`, the time to compute the stages that select its pairs, also if it reused them;
    `models` by phase, "pretrain" and "finetune"."""

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
    """The stages of one kind before training.

    Keys: `kind`, such as "embedding"; `needed`, how often a trial needs one; `distinct`, how many different ones there
    are; `computed`, how many of them this sweep built (the others were in the store); `seconds`, the time that took."""

    kind: str
    needed: int
    distinct: int
    computed: int
    seconds: float


class SweepReport(Entry):
    """The whole of `sweep.json`.

    Keys: `schema_version`; the sweep's `name`, when it first `started` (ISO 8601), how often it was `resumed`, and the
    `wall_seconds` of all starts; `metric`, by which trials are compared; `dimensions`, the values of each, sorted;
    `seeds`; `equal_samples` or `equal_epochs`, the budget of pre-training (null: as configured); `cores` of the
    cluster, on which pruning runs; `devices`, how many GPUs or cores train one trial, and `device`, "GPU" or "core";
    `trials`; `sharing`, the stages before training; `versions` of the libraries; `config`, the whole configuration."""

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
