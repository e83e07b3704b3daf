"""What `report.json` holds: these classes are the schema, their attributes the keys, in this order.

All fractions lie in [0, 1], all times are wall seconds, a key that does not apply to the verb is null or empty. A key
is never renamed or given another meaning without a new `schema_version`; new keys may come."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from orchestrator.report.entry import Entry, Example
from orchestrator.report.schema_clusters import ClusteringReport, ClusterPruning, Duplicates

SCHEMA_VERSION = 1


class FunnelRow(Entry):
    """How many pairs are left at a point of the way.

    Keys: `name` ("source", "pool", a step's name, "pretrain" or "finetune"); `what` it means, in words; `pairs`."""

    name: str
    what: str
    pairs: int


class StepReport(Entry):
    """A selection step.

    Keys: `name` and `method`; `settings` as configured; `pairs_in` that reached it; `budget` it was asked to keep (null
    for a step without one); `pairs_out` that left it; `reasons`, how many of the others were dropped for what;
    `threshold`, the score of the last pair kept: the lowest, or the highest where low scores are kept (null without
    scores, and where each cluster has its own threshold); `no_words`, pairs without a word in their caption, which are
    pruned first (null where no words were counted)."""

    name: str
    method: str
    settings: dict[str, Any]
    pairs_in: int
    budget: int | None
    pairs_out: int
    reasons: dict[str, int] = Field(default={})
    threshold: float | None
    no_words: int | None


class CatalogSkips(Entry):
    """What was wrong with the source.

    Keys: `broken_shards`; `problems`, a count for each kind; `examples`, some of them named."""

    broken_shards: int
    problems: dict[str, int]
    examples: list[str]


class TrainingSkips(Entry):
    """Samples of a phase that kept their slot but were masked from the loss: `skipped` of them, some named."""

    skipped: int
    examples: list[str]


class Skipped(Entry):
    """What was left out, and why.

    Keys: `catalog`; `training` by phase; `evaluation`, undecodable images of the evaluation sets by model."""

    catalog: CatalogSkips | None = None
    training: dict[str, TrainingSkips] = Field(default={})
    evaluation: dict[str, int] = Field(default={})


class WordStatistics(Entry):
    """The words of a set of captions.

    Keys: `distinct` words and their `occurrences`, all of them; `frequent_distinct`, those with at least `min_count`
    occurrences; `top_100_share`, the share of all occurrences that the 100 most frequent of those have; `entropy_bits`
    of the distribution over those; `curve`, [rank, occurrences] of up to 200
    words at log-spaced ranks, rank 1 being the most frequent word, down to `min_count` occurrences."""

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
    """All `words` that occur `at_least` to less than `below` times before pruning: their occurrences then and now."""

    at_least: int
    below: int
    words: int
    before: int
    after: int


class Words(Entry):
    """Word frequencies before and after pruning.

    Keys: `min_count`, the occurrences below which the curves and bands leave a word out; `before` and `after`; `bands`
    of frequency, each twice as frequent as the one before; `most_affected` and `least_affected`, the words of lowest
    and highest kept share among the `compared_words` most frequent ones."""

    min_count: int
    before: WordStatistics
    after: WordStatistics
    bands: list[FrequencyBand]
    compared_words: int
    most_affected: list[WordChange]
    least_affected: list[WordChange]


class CurvePoint(Entry):
    """A logged step: `step`, `samples_seen` and `epoch` of the phase so far, `loss`, `lr`, `samples_per_second`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    samples_seen: int
    epoch: float
    loss: float
    lr: float
    samples_per_second: float


class PhaseReport(Entry):
    """A training phase.

    Keys: `pairs` it sees, `epochs` over them, `samples_seen` and `steps` in all; `loss`, the last; `num_workers`;
    `curve`, at most 500 of the logged steps, the last one among them."""

    pairs: int
    epochs: float
    samples_seen: int
    steps: int
    loss: float
    num_workers: int
    curve: list[CurvePoint]


class Cost(Entry):
    """What training took against training as long on everything.

    Keys: `samples_seen` in all phases; `full_samples`, the epochs of pre-training over every pair that can be trained
    on; `samples_fraction`, the first over the second; `paper_fraction`, keep fraction + 1 / epochs where there is a
    fine-tune epoch, of which a share where it sees a share of the pairs; `pruning_seconds` (without the catalog, which
    training needs in any case) and `training_seconds`, what the stages took when they were computed."""

    samples_seen: int
    full_samples: int
    samples_fraction: float
    paper_fraction: float
    pruning_seconds: float
    training_seconds: float


class ZeroShot(Entry):
    """Zero-shot classification: `top1`, `top5`, `mean_per_class`, the set's size, undecodable images `skipped`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    top1: float
    top5: float
    mean_per_class: float
    num_classes: int
    num_images: int
    skipped: int


class ModelEvaluation(Entry):
    """A model's results: `zero_shot`, and `retrieval` with `image_to_text_recall_at_K`, `text_to_image_recall_at_K` for
    K = 1, 5, 10, `num_pairs` and `skipped`; null where the set was not given."""

    zero_shot: ZeroShot | None = None
    retrieval: dict[str, float] | None = None


class TaskResult(Entry):
    """A benchmark task: its `key`, `name` and `group`; the main `metric` and its `value`; all `metrics` by name, as
    DataComp and clip_benchmark call them; `num_images` measured and undecodable ones `skipped`."""

    key: str
    name: str
    group: str | None
    metric: str
    value: float
    metrics: dict[str, float]
    num_images: int
    skipped: int


class SkippedTask(Entry):
    """A task of the list that was not measured, and the `reason`."""

    key: str
    name: str
    reason: str


class TaskAverage(Entry):
    """The mean of the main metrics of a group of tasks (`name`) or of all of them, null without any: of so many
    `measured` tasks, `of` so many in the list. It compares with other work only if all of them are measured."""

    name: str
    value: float | None
    measured: int
    of: int


class TaskTable(Entry):
    """A model on a list of benchmark tasks: `results` of those measured, the `skipped` ones, and the `averages`."""

    results: list[TaskResult]
    skipped: list[SkippedTask]
    averages: list[TaskAverage]


class ExampleGroup(Entry):
    """Pairs of one fate.

    Keys: `name` ("highest", "above", "below", "lowest"; "kept", "pruned" for steps without scores), `kept`, `pairs`."""

    name: str
    kept: bool
    pairs: list[Example]


class Examples(Entry):
    """Example pairs of the last step that pruned: its name, what its `score` measures (null without scores), and the
    `parts_read` of `num_parts` they are drawn from."""

    step: str
    score: str | None = None
    parts_read: int
    num_parts: int
    groups: list[ExampleGroup]


class StageTime(Entry):
    """A stage: `reused` from an earlier run or not, `seconds` in this run, `computed_seconds` of all the runs that it
    took to compute it."""

    name: str
    reused: bool
    seconds: float
    computed_seconds: float


class Fingerprint(Entry):
    """What a stage's artifact is: its `kind`, the folder's `uri`, and the `fingerprint` of all that made it."""

    kind: str
    uri: str
    fingerprint: str


class Report(Entry):
    """The whole of `report.json`.

    Keys: `schema_version`; the run's `name`, `verb`, when it `started` (ISO 8601) and its `wall_seconds`; `funnel`, the
    counts at each step; `steps`; `captionless` pairs of the pool (null where nothing counted them); `clusterings`,
    `clusters` and `duplicates` by step, of the steps that have them; `skipped`; `words`; `training` by phase; `cost`;
    `evaluation` and benchmark `tasks` by model ("pretrain", "finetune", "checkpoint"); `examples`; `stages`, wall
    seconds in order; `fingerprints` by stage; `versions` of the libraries; `config`, whole."""

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
    skipped: Skipped = Skipped()
    words: Words | None = None
    training: dict[str, PhaseReport] = Field(default={})
    cost: Cost | None = None
    evaluation: dict[str, ModelEvaluation] = Field(default={})
    tasks: dict[str, TaskTable] = Field(default={})
    examples: Examples | None = None
    stages: list[StageTime]
    fingerprints: dict[str, Fingerprint]
    versions: dict[str, str]
    config: dict[str, Any]
