"""The evaluation sets: one classification set, one retrieval set, and lists of benchmark tasks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.clip.prompts import check_templates
from orchestrator.config.section import Positive, Section

Metric = Literal[
    "acc1",
    "mean_per_class_recall",
    "F1-macro_all",
    "acc_wg",
    "acc_top5_wg",
    "acc_worst_region",
    "mean_recall@1",
    "jaccard_score_10-12",
]


class ZeroShotConfig(Section):
    """A zero-shot classification set."""

    uri: str | None = None
    """A tar of images with their class numbers (`cls`), beside `NAME.classnames.txt` with one class per line. Null: no
    such set. `demo`: the set of the embedded pool."""
    templates: tuple[str, ...] | None = None
    """Prompt templates with `{}` for the class name. Null: the templates beside the tar, otherwise OpenAI's."""

    @field_validator("templates")
    @classmethod
    def _have_placeholders(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        check_templates(templates or ())
        return templates


class RetrievalConfig(Section):
    """A retrieval set of validation pairs."""

    uri: str | None = None
    """A tar of images with captions that are not in the pool. Null: no such set. `demo`: the set of the embedded
    pool."""
    caption_column: str | None = None
    """What holds the captions: the extension of a member, a key of the JSON members, or a column of the Parquet files
    beside the tars. Null: as in the pool (`source.caption_column`) if the pool consists of tars, otherwise usual
    names, such as `txt` and `caption`."""


class TaskConfig(Section):
    """A benchmark task in clip_benchmark's WebDataset layout."""

    name: str
    """The name in tables."""
    metric: Metric = "acc1"
    """The main metric, by its name in DataComp."""
    group: str | None = None
    """The group average that the task enters, besides the average over all tasks."""
    folders: tuple[str, ...] = ()
    """Further names of the task's folder, besides the task's key."""


class EvaluationConfig(Section):
    """The sets and tasks that trained models are evaluated on."""

    zero_shot: ZeroShotConfig = ZeroShotConfig()
    """A zero-shot classification set."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """A retrieval set."""
    batch_size: Positive = 256
    """Images or texts in one forward pass. Unit: items."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The autocast precision of the towers. Published results are in fp32. bf16 is several times faster on GPUs; its
    features differ from those of fp32 by a few thousandths. Scores and ranks are in fp32 in both."""
    root: str | None = None
    """The folder or bucket that holds the folders of the benchmark tasks."""
    tasks: dict[str, TaskConfig] = Field(default={})
    """The benchmark tasks by key. A key names its folder: `ROOT/wds_KEY_test`, `ROOT/wds_KEY` or `ROOT/KEY`. Lists to
    choose from: `evaluation=imagenet`, `imagenet_shifts`, `vtab`, `retrieval`, `datacomp38`."""
    linear_probe: bool = False
    """Also fit a logistic regression on the features of every classification task that has a `train/` split. The
    features are held in memory."""

    @field_validator("zero_shot", "retrieval", "tasks", mode="before")
    @classmethod
    def _null_is_none_of_them(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _check_root(self) -> EvaluationConfig:
        if self.tasks and self.root is None:
            raise ValueError(
                f"evaluation.root is not set; expected the folder that holds the folders of the {len(self.tasks)} tasks"
            )
        if self.root is not None and not self.tasks:
            raise ValueError(
                "evaluation.root is set but there are no tasks; choose a list, such as evaluation=datacomp38"
            )
        return self
