"""What trained models are measured on: one classification set, one retrieval set, and lists of benchmark tasks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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
    """A classification set: a tar of image + `cls`, its class names and prompt templates in text files beside it."""

    uri: str | None = None
    templates: tuple[str, ...] | None = None


class RetrievalConfig(Section):
    """Held-out pairs: a tar of image + caption."""

    uri: str | None = None


class TaskConfig(Section):
    """A benchmark task in clip_benchmark's WebDataset layout: its `metric` is the main one, `group` the average it
    enters beside the one over all tasks, `folders` what its folder may be called besides the task's key."""

    name: str
    metric: Metric = "acc1"
    group: str | None = None
    folders: tuple[str, ...] = ()


class EvaluationConfig(Section):
    """What the trained models are measured on; `root` is the folder (or bucket) that the tasks' folders are in."""

    zero_shot: ZeroShotConfig = ZeroShotConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    batch_size: Positive = 256
    root: str | None = None
    tasks: dict[str, TaskConfig] = Field(default={})
    linear_probe: bool = False

    @model_validator(mode="after")
    def _tasks_and_their_root(self) -> EvaluationConfig:
        if self.tasks and self.root is None:
            raise ValueError(
                f"evaluation.root is not set; expected the folder that holds the {len(self.tasks)} tasks' folders"
            )
        if self.root is not None and not self.tasks:
            raise ValueError("evaluation.root is set, but there are no tasks; name a list, evaluation=datacomp38 say")
        return self
