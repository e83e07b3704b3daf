"""The schema of `report.json`: the attributes of these classes are its keys, in this order.

Fractions are in [0, 1], times are wall-clock seconds. A key that does not apply to the verb is null or empty. Keys are
not renamed and do not change their meaning without a new `schema_version`; new keys may be added."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from orchestrator.engine.artifact_files import checked
from orchestrator.report.files import JSON_FILE
from orchestrator.report.schema_pairs import ClusteringReport, ClusterPruning, Duplicates, Entry, Examples
from orchestrator.storage import files

SCHEMA_VERSION = 1


class FunnelRow(Entry):
    """The number of pairs left after a step.

    Keys: `name` ("source", "pool", a step's name, "pretrain" or "finetune"); `what`, its label; `pairs`."""

    name: str
    what: str
    pairs: int


class StepReport(Entry):
    """A selection step.

    Keys: `name` and `method`; `settings` as configured; `pairs_in`, the pairs that reach the step; `budget`, the pairs
    to keep (null for a step without one); `pairs_out`, the pairs that it keeps; `reasons`, dropped pairs by reason;
    `threshold`, the score of the last pair kept: the lowest, or the highest where low scores are kept (null without
    scores, and where each cluster has its own threshold); `sizes`, the pairs that were filtered by the size of the
    original image and those by the size of the stored one (empty where sizes do not matter); `no_words`, pairs without
    a word in their caption, which are pruned first (null where no words were counted)."""

    name: str
    method: str
    settings: dict[str, Any]
    pairs_in: int
    budget: int | None
    pairs_out: int
    reasons: dict[str, int] = Field(default={})
    threshold: float | None
    sizes: dict[str, int] = Field(default={})
    no_words: int | None


class CatalogSkips(Entry):
    """Problems of the source.

    Keys: `broken_shards`; `problems`, a count for each kind; `examples`, some problems in words; `captions_from`, pairs
    by the member, JSON key or column that holds their caption."""

    broken_shards: int
    problems: dict[str, int]
    examples: list[str]
    captions_from: dict[str, int] = Field(default={})


class TrainingSkips(Entry):
    """Undecodable samples of a phase, which are masked from the loss: the number `skipped` and some `examples`."""

    skipped: int
    examples: list[str]


class Skips(Entry):
    """Data that could not be used.

    Keys: `catalog`; `training` by phase; `evaluation`, undecodable images of the evaluation sets by model."""

    catalog: CatalogSkips | None = None
    training: dict[str, TrainingSkips] = Field(default={})
    evaluation: dict[str, int] = Field(default={})


class WordStatistics(Entry):
    """Statistics of the words in a set of captions.

    Keys: `distinct` words and their `occurrences`; `frequent_distinct`, the words with at least `min_count`
    occurrences; `top_100_share`, the share of all occurrences that belongs to the 100 most frequent words;
    `entropy_bits` of the distribution over the frequent words; `curve`, [rank, occurrences] of up to 200 words at
    log-spaced ranks, from rank 1 (the most frequent word) down to `min_count` occurrences."""

    distinct: int
    occurrences: int
    frequent_distinct: int
    top_100_share: float
    entropy_bits: float
    curve: list[tuple[int, int]]


class WordChange(Entry):
    """A word's occurrences `before` and `after` pruning, and the `kept_share`, after / before."""

    word: str
    before: int
    after: int
    kept_share: float


class FrequencyBand(Entry):
    """Words with `at_least` to less than `below` occurrences before pruning, and their occurrences before and after."""

    at_least: int
    below: int
    words: int
    before: int
    after: int


class Words(Entry):
    """Word frequencies before and after pruning.

    Keys: `min_count`, the fewest occurrences of a word in the curves and bands; `before` and `after`; `bands` of
    frequency, each twice as frequent as the previous one; `most_affected` and `least_affected`, the words with the
    lowest and highest kept share among the `compared_words` most frequent words."""

    min_count: int
    before: WordStatistics
    after: WordStatistics
    bands: list[FrequencyBand]
    compared_words: int
    most_affected: list[WordChange]
    least_affected: list[WordChange]


class CurvePoint(Entry):
    """A logged step of a phase: `step`, `samples_seen` and `epoch` so far, `loss`, `lr`, `samples_per_second`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    samples_seen: int
    epoch: float
    loss: float
    lr: float
    samples_per_second: float


class PhaseReport(Entry):
    """A training phase.

    Keys: `pairs` to train on, `epochs` over them, total `samples_seen` and `steps`; `loss`, the last one;
    `num_workers`; `curve`, at most 500 of the logged steps, including the last."""

    pairs: int
    epochs: float
    samples_seen: int
    steps: int
    loss: float
    num_workers: int
    curve: list[CurvePoint]


class TrainingCost(Entry):
    """The cost of training, compared with as many epochs on every pair.

    Keys: `samples_seen` in all phases; `full_samples`, the epochs of pre-training times every pair that can be trained
    on; `samples_fraction`, samples_seen / full_samples; `paper_fraction`, keep fraction + fine-tuned fraction / epochs;
    `pruning_seconds` (without the catalog, which training needs in any case) and `training_seconds`, measured when the
    stages were computed."""

    samples_seen: int
    full_samples: int
    samples_fraction: float
    paper_fraction: float
    pruning_seconds: float
    training_seconds: float


class ZeroShot(Entry):
    """Zero-shot classification: `top1`, `top5`, `mean_per_class`, the size of the set, undecodable images `skipped`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    top1: float
    top5: float
    mean_per_class: float
    num_classes: int
    num_images: int
    skipped: int


class ModelEvaluation(Entry):
    """A model's results: `zero_shot`, and `retrieval` with `image_to_text_recall_at_K`, `text_to_image_recall_at_K` for
    K = 1, 5, 10, `num_pairs` and `skipped`; null without such a set."""

    zero_shot: ZeroShot | None = None
    retrieval: dict[str, float] | None = None


class TaskResult(Entry):
    """Result of a benchmark task: `key`, `name` and `group`; the main `metric` and its `value`; all `metrics`, named as
    in DataComp and clip_benchmark; `num_images` measured and undecodable images `skipped`."""

    key: str
    name: str
    group: str | None
    metric: str
    value: float
    metrics: dict[str, float]
    num_images: int
    skipped: int


class SkippedTask(Entry):
    """A task in the list that was not measured, and the `reason`."""

    key: str
    name: str
    reason: str


class TaskAverage(Entry):
    """Mean of the main metrics of a group of tasks (`name`) or of all tasks; null if none is measured.

    `measured` tasks are included, `of` are in the list. Compare it with other work only if all tasks are measured."""

    name: str
    value: float | None
    measured: int
    of: int


class TaskTable(Entry):
    """Benchmark tasks of a model: `results` of the measured tasks, the `skipped` tasks, and `averages`."""

    results: list[TaskResult]
    skipped: list[SkippedTask]
    averages: list[TaskAverage]


class StageTime(Entry):
    """Time of a stage: `reused` from an earlier run or not; `seconds` in this run; `computed_seconds`, the time to
    compute it, summed over all runs that worked on it."""

    name: str
    reused: bool
    seconds: float
    computed_seconds: float


class Fingerprint(Entry):
    """Artifact of a stage: its `kind`, the `uri` of its folder, and the `fingerprint` of everything that made it."""

    kind: str
    uri: str
    fingerprint: str


class Report(Entry):
    """The whole of `report.json`.

    Keys: `schema_version`; the run's `name`, `verb`, start time `started` (ISO 8601) and `wall_seconds`; `funnel`, the
    pairs left after each step; `steps`; `captionless` pairs of the pool (null if not counted); `clusterings`,
    `clusters` and `duplicates`, by step; `skipped`; `words`; `training` by phase; `cost`; `evaluation` and benchmark
    `tasks` by model ("pretrain", "finetune", "checkpoint"); `not_evaluated`, why the evaluation failed (null if it did
    not); `examples`; `stages`, their times in order; `fingerprints` by stage; `versions` of the libraries; `config`,
    the whole configuration."""

    schema_version: int = SCHEMA_VERSION
    name: str
    verb: str
    started: str
    wall_seconds: float
    funnel: list[FunnelRow] = Field(default=[])
    steps: list[StepReport] = Field(default=[])
    captionless: int | None = None
    clusterings: dict[str, ClusteringReport] = Field(default={})
    clusters: dict[str, ClusterPruning] = Field(default={})
    duplicates: dict[str, Duplicates] = Field(default={})
    skipped: Skips = Skips()
    words: Words | None = None
    training: dict[str, PhaseReport] = Field(default={})
    cost: TrainingCost | None = None
    evaluation: dict[str, ModelEvaluation] = Field(default={})
    tasks: dict[str, TaskTable] = Field(default={})
    not_evaluated: str | None = None
    examples: Examples | None = None
    stages: list[StageTime]
    fingerprints: dict[str, Fingerprint]
    versions: dict[str, str]
    config: dict[str, Any]

    @classmethod
    def read(cls, out: str) -> Report:
        """Return the report in the folder of a run. Errors: `StoreError` if it is missing or damaged."""
        uri = files.join(out, JSON_FILE)
        with checked(uri, remedy=f"write it again: python -m orchestrator report run={out}"):
            return cls.model_validate_json(files.read(uri))
